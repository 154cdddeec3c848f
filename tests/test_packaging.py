"""The layout: what must not exist, what must not be imported, and what the flat package may import."""

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from classquery.saving_classquery import code_files


ROOT = Path(__file__).parent.parent


def run_python(code: str) -> str:
    """Run code in a fresh process in the root of the checkout, as the run script does."""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_kernels_folder_is_no_package():
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_importing_transformers_loads_nothing_of_ours_and_importing_classquery_only_the_model():
    loaded, heavy = run_python(
        "import sys, transformers.integrations.hub_kernels, transformers.modeling_utils\n"
        "files = {n: getattr(m, '__file__', None) or '' for n, m in sys.modules.items()}\n"
        f"print([n for n, file in files.items() if file.startswith({f'{ROOT}/'!r})])\n"
        "import classquery\n"
        "print([n for n in ('decord', 'av', 'datasets', 'matplotlib', 'classquery.data', 'classquery.engine')"
        " if n in sys.modules])"
    ).splitlines()

    assert loaded == "[]"
    assert heavy == "[]"


def test_importing_classquery_imports_neither_torch_nor_transformers_and_registers_with_them_later():
    assert run_python(
        "import sys, classquery, pickle\n"
        "print([n for n in ('numpy', 'torch', 'transformers') if n in sys.modules])\n"
        "from transformers import AutoConfig, AutoModel, pipeline\n"
        "model = AutoModel.from_pretrained(classquery.demo_checkpoint())\n"
        "print(type(pickle.loads(pickle.dumps(model))).__module__)\n"
        "detector = pipeline('video-action-detection', model=classquery.demo_checkpoint())\n"
        "print(type(detector).__name__, type(detector.video_processor).__name__)\n"
        "print([f for f in sys.meta_path if type(f).__module__.startswith('classquery')])"
    ).splitlines() == [
        "[]",
        "classquery.modeling_classquery",
        "VideoActionDetectionPipeline ClassQueryVideoProcessor",
        "[]",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "first",
    [
        "from classquery.configuration_classquery import ClassQueryConfig",
        "from classquery.modeling_classquery import ClassQueryModel",
        "from classquery.video_processing_classquery import ClassQueryVideoProcessor",
        "from classquery.pipeline_classquery import VideoActionDetectionPipeline",
        "from transformers import AutoConfig; import classquery",
        "from transformers import AutoModel, AutoProcessor; import classquery",
        "import transformers, classquery",
        "import classquery; classquery.ClassQueryConfig()",
        "import classquery; classquery.load_detector('demo')",
    ],
)
def test_classes_are_registered_whatever_is_imported_first(first):
    assert (
        run_python(
            f"{first}\nimport classquery\n"
            "from transformers import AutoConfig, AutoModel, AutoModelForObjectDetection, AutoProcessor, pipeline\n"
            "path = classquery.demo_checkpoint()\n"
            "found = AutoModel.from_config(AutoConfig.from_pretrained(path)), AutoProcessor.from_pretrained(path)\n"
            "found = *found, pipeline('video-action-detection', model=path)\n"
            "print(*(type(one).__name__ for one in found))"
        ).splitlines()[-1]
        == "ClassQueryForVideoActionDetection ClassQueryVideoProcessor VideoActionDetectionPipeline"
    )


@pytest.mark.slow
def test_kernels_print_what_is_available():
    assert run_python("import runpy; runpy.run_module('classquery.kernels', run_name='__main__')").startswith("torch")


# The package's __init__ stays behind when the model code is copied.
FLAT_MODULES = sorted((ROOT / "modeling_classquery").glob("[!_]*.py"))


@pytest.mark.parametrize("path", FLAT_MODULES, ids=lambda path: path.name)
def test_flat_modules_import_their_neighbours_so_that_the_hub_can_copy_them(path):
    source = path.read_text()

    # The copier reads the text, docstrings included, and follows names in the same folder only.
    for module in re.findall(r"^\s*from\s+(\.\S*)\s+import", source, flags=re.MULTILINE):
        assert re.fullmatch(r"\.\w+", module), module
        assert (path.parent / f"{module[1:]}.py").exists(), module
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and not node.level:
            assert node.module.split(".")[0] != "classquery"
        if isinstance(node, ast.Import):
            assert all(alias.name.split(".")[0] != "classquery" for alias in node.names)


def test_flat_modules_import_each_other_in_no_circle_and_the_pipeline_imports_all_that_travel():
    imports = {
        path.stem: set(re.findall(r"^\s*from\s+\.(\w+)\s+import", path.read_text(), flags=re.MULTILINE))
        for path in FLAT_MODULES
    }

    graphlib.TopologicalSorter(imports).prepare()  # Raises CycleError.

    stays = {
        "convert_classquery_checkpoint",
        "checkpoint_layouts_classquery",
        "checkpoint_files_classquery",
        "conversion_classquery",
        "published_classquery",
    }
    assert {path.stem for path in code_files()} == imports.keys() - stays


def test_run_script_without_installation_says_what_to_do(tmp_path):
    script = tmp_path / "run_action_detection.py"
    script.write_text((ROOT / "run_action_detection.py").read_text())
    code = (
        "import importlib.abc, runpy, sys\n"
        "class Hide(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'classquery':\n"
        "            raise ModuleNotFoundError('hidden', name='classquery')\n"
        "sys.meta_path.insert(0, Hide())\n"
        f"runpy.run_path({str(script)!r}, run_name='__main__')\n"
    )

    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)

    assert result.returncode == 1
    assert "pip install -c constraints.txt -e" in result.stderr
    assert "Traceback" not in result.stderr
