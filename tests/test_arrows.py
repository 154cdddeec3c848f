"""Who imports whom: between rooms arrows go one way, and within a room in no circle. Read from the source."""

import ast
import graphlib
from pathlib import Path

import pytest


ROOT = Path(__file__).parent.parent
# Folder, and what it is imported as.
PACKAGES = {
    "modeling_classquery": "classquery",
    "configuration": "classquery.configuration",
    "data": "classquery.data",
    "kernels/torch-ext/classquery_kernels": "classquery.kernels",
}
# For each room, those that it may import; `flat` is what lies directly in `modeling_classquery/`, and `package` the
# package itself, whose names come from everywhere when they are asked for.
ARROWS = {
    "package": {"engine", "flat"},
    "script": {"cli"},
    "cli": {"engine", "configuration", "data", "flat", "kernels"},
    "engine": {"configuration", "data", "flat", "kernels"},
    "configuration": {"data", "flat"},
    "data": {"flat", "kernels"},
    "flat": {"kernels"},
    "kernels": set(),
}
# What the data may know of the flat modules: how names are imported when they are asked for, and linking detections to
# tubes, which is the same for results and for metrics.
FLAT_FOR_DATA = {"classquery._lazy", "classquery.linking_classquery"}


def modules() -> dict[str, Path]:
    """Every module of the project by the name it is imported by."""
    found = {"run_action_detection": ROOT / "run_action_detection.py"}
    for folder, package in PACKAGES.items():
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join((package, *parts)).removesuffix(".__init__")] = path
    return found


MODULES = modules()


def room(module: str) -> str:
    if module == "run_action_detection":
        return "script"
    if module == "classquery":
        return "package"
    name = module.split(".")[1] if "." in module else ""
    if name == "__main__":
        return "script"
    return name if name in ("cli", "engine", "configuration", "data", "kernels") else "flat"


def imports(module: str, nodes=ast.walk) -> set[str]:
    """Modules of the project that a module imports, anywhere or, with `top_level`, when it is imported itself."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for node in nodes(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level else ""
            source = ".".join(filter(None, (base, node.module)))
            names = {f"{source}.{alias.name}" for alias in node.names}
            found |= names if names <= MODULES.keys() else names | {source}
    return (found & MODULES.keys()) - {module}


def top_level(tree: ast.Module) -> list[ast.stmt]:
    return tree.body


@pytest.mark.parametrize("module", sorted(MODULES))
def test_arrows_between_rooms_go_one_way(module):
    own = room(module)
    others = {other for other in imports(module) if room(other) != own and other != "classquery"}

    upward = {other for other in others if room(other) not in ARROWS[own]}
    if own == "data":
        upward |= {other for other in others if room(other) == "flat"} - FLAT_FOR_DATA

    assert not upward


def test_no_module_waits_for_itself():
    graph = {module: imports(module, top_level) for module in MODULES}

    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError with the circle


def test_folders_of_the_engine_import_each_other_one_way():
    """Training knows nothing of detection over videos, and detection nothing of training."""
    folders = {"training": "detection", "detection": "training"}
    for folder, other in folders.items():
        for module in MODULES:
            if module.startswith(f"classquery.engine.{folder}."):
                assert not {name for name in imports(module) if name.startswith(f"classquery.engine.{other}")}, module


def test_benchmarks_import_each_other_in_no_circle_and_no_command():
    """What several need is in modules without a command."""
    paths = {path.stem: path for path in (ROOT / "benchmarks").glob("*.py")}
    graph = {}
    for name, path in paths.items():
        nodes = list(ast.walk(ast.parse(path.read_text())))
        graph[name] = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
        graph[name] |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        graph[name] &= paths.keys()

    graphlib.TopologicalSorter(graph).prepare()
    commands = {name for name, path in paths.items() if '__name__ == "__main__"' in path.read_text()}
    assert not set().union(*graph.values()) & commands
