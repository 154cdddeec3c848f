"""The kernels as a project of kernel-builder, and as the Hub's package `kernels` loads them."""

import importlib.metadata
import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_ops_classquery import SHAPES, random_inputs

from classquery import kernels, ops_classquery


ROOT = Path(__file__).parents[1]
VARIABLE = "CLASSQUERY_KERNELS_FOLDER"


def get_local_kernel(folder: Path):
    """Stands in for the package's function where the package is not."""
    variant = folder / "build" / "torch-cpu"
    name = json.loads((variant / "metadata.json").read_text())["id"]
    spec = importlib.util.spec_from_file_location(name, variant / "__init__.py")
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def assemble():
    """The script that lays the project out."""
    spec = importlib.util.spec_from_file_location("assemble", ROOT / "kernels" / "assemble.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def has_kernels() -> bool:
    try:
        importlib.metadata.version("kernels")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def test_the_layout_is_that_of_build_toml(assemble, tmp_path):
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 or newer")
    build = tomllib.loads((ROOT / "kernels" / "build.toml").read_text())

    assemble.assemble(tmp_path)

    general = build["general"]
    ours = (assemble.NAME, assemble.VERSION, assemble.LICENSE)
    assert ours == (general["name"], general["version"], general["license"])
    assert tuple(general["backends"]) == assemble.BACKENDS
    assert tuple(f".{ending}" for ending in build["torch-noarch"]["pyext"]) == assemble.ENDINGS
    variants = sorted((tmp_path / "build").iterdir())
    assert [variant.name for variant in variants] == ["torch-cpu", "torch-cuda"]
    for variant in variants:
        assert json.loads((variant / "metadata.json").read_text())["backend"]["type"] in variant.name
        sources = {path.name for path in (variant / "csrc").iterdir()}
        assert sources == {"deformable_attention.cpp", "deformable_attention.cu", "pixels.cpp", "simd.h"}


def test_the_detector_uses_kernels_of_a_folder_when_told_to(assemble, tmp_path, monkeypatch):
    assemble.assemble(tmp_path / "project")
    if not has_kernels():
        stand_in = SimpleNamespace(get_local_kernel=get_local_kernel, __spec__=SimpleNamespace(origin="here"))
        monkeypatch.setitem(sys.modules, "kernels", stand_in)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "project"))
    inputs = random_inputs(torch.float32)

    loaded = ops_classquery._find_kernels()
    monkeypatch.setattr(ops_classquery, "_KERNELS", loaded)
    output = ops_classquery.deformable_attention_3d(spatio_temporal_shapes=SHAPES, **inputs)

    # Beside the installed ones: the same operators in a namespace of their own.
    assert loaded.__name__ == loaded.ops.NAMESPACE == "_classquery_kernels_cpu_1"
    assert loaded.chosen("cpu") == kernels.chosen("cpu")
    expected = kernels.deformable_attention_3d(spatio_temporal_shapes=SHAPES, **inputs)
    torch.testing.assert_close(output, expected, atol=0, rtol=0)


@pytest.mark.skipif(not has_kernels(), reason="no package kernels")
def test_the_package_of_the_hub_accepts_build_toml():
    from kernels._rust import Build

    Build.open(ROOT / "kernels")  # parses and validates it


@pytest.mark.skipif(has_kernels(), reason="the package kernels is there")
def test_without_the_package_a_folder_is_an_error_with_a_remedy(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    # In the root of the project, `import kernels` would find its folder, which is empty to Python.
    monkeypatch.syspath_prepend(ROOT)

    with pytest.raises(ImportError, match="needs the package kernels: pip install kernels"):
        ops_classquery._find_kernels()
