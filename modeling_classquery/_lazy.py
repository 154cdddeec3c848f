"""Names of a package that are imported when they are asked for, because torch and transformers take seconds.

    if TYPE_CHECKING:
        from classquery.engine.checkpoint import load_detector

    __getattr__, __dir__ = lazily(__name__)

Readers, editors and type checkers see ordinary imports. They are taken from the source, so they are written down once.
"""

import ast
import importlib
import sys
from collections.abc import Callable


def lazily(package: str) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` of a package, for the names that it imports under `if TYPE_CHECKING:`."""
    module = sys.modules[package]
    modules = _modules_of_names(module.__spec__.loader.get_source(package))

    def load(name: str) -> object:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(modules[name]), name)

    def names() -> list[str]:
        return sorted({*vars(module), *modules})

    return load, names


def _modules_of_names(source: str) -> dict[str, str]:
    blocks = [
        node.body
        for node in ast.parse(source).body
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    ]
    return {alias.name: line.module for block in blocks for line in block for alias in line.names}
