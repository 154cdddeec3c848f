"""The benchmark for GPUs, run on a CPU at tiny sizes: its times mean nothing here, its tables and floors do."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

from classquery.kernels import build


BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TINY = [(2, 3, 4), (1, 2, 2)]

needs_compiler = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")


@pytest.fixture
def gpu(monkeypatch):
    """The module with what is measured on a GPU."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("deformable_attention_gpu")


def table_rows(text: str) -> list[list[str]]:
    """Cells of all lines of tables but for those under headings."""
    lines = [line for line in text.splitlines() if line.startswith("|") and not line.startswith("|---")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


# Megabytes (forward, backward) as counted by hand from the tensors of the operator.
@pytest.mark.parametrize(
    ("num_cells", "dtype", "expected"),
    [
        (58_048, "float32", (359, 716)),
        (58_048, "bf16", (300, 627)),
        (26_592, "float32", (165, 328)),
        (90_384, "float32", (560, 1115)),
        (145_120, "float32", (899, 1790)),
    ],
)
def test_bytes_of_the_published_sizes(gpu, num_cells, dtype, expected):
    assert tuple(round(gpu.bytes_moved(num_cells, 4, dtype, label) / 1e6) for label in gpu.PASSES) == expected


def test_estimates_grow_with_the_number_of_samples(gpu):
    cells = {"AVA": 58_048, "CSN": 26_592, "UCF": 90_384, "JHMDB": 145_120}
    for name, estimates in gpu.ESTIMATES.items():
        expected = [estimate * cells[name] / cells["AVA"] for estimate in gpu.ESTIMATES["AVA"]]
        assert estimates == pytest.approx(expected, rel=0.03)


def test_rows_compare_with_the_fused_form(gpu):
    times = {"fused": 2.0, "grid_sample": 30.0, "plain": 5.0}

    assert gpu.time_cells(times, 0.5, 0.1) == "2.000 | 0.500 (4.0) | 0.100 (20.0) | 30.000 (15.0) | 5.000 (2.5) | -"
    assert gpu.memory_cells({"fused": 4_000_000, "plain": 2_500_000_000}) == "4 | - | 2,500 | -"


@needs_compiler
def test_the_operator_is_measured_in_all_forms(gpu, capsys, monkeypatch):
    monkeypatch.setattr(gpu, "DTYPES", {"bf16": torch.bfloat16})

    gpu.print_operator({"AVA": TINY}, rounds=1, device="cpu", copied=2**10)

    heading, *times, memory_heading, forward, backward = table_rows(capsys.readouterr().out)
    assert [row[:4] for row in times] == [["AVA", "28", "bf16", label] for label in gpu.PASSES]
    # Only a GPU runs im2col.
    assert {len(row) for row in times} == {len(heading)}
    assert [row.index("-") for row in times] == [heading.index("im2col")] * 2
    assert memory_heading == ["size", "type", "pass", "fused", "grid_sample", "plain", "im2col"]
    assert [row[:3] for row in (forward, backward)] == [
        ["AVA", "bf16", "forward"],
        ["AVA", "bf16", "forward+backward"],
    ]


@needs_compiler
def test_what_does_not_fit_into_memory_is_left_out(gpu, monkeypatch):
    def too_large(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(gpu, "grid_sample", too_large)

    measured = gpu.measure(TINY, "float32", "backward", "cpu", rounds=1)

    assert set(measured.milliseconds) == set(measured.extra_bytes) == {"fused", "plain"}


def test_wrong_outputs_are_not_timed(gpu):
    value, *others = gpu.make_inputs(TINY, "cpu")
    plain = gpu.in_implementation("torch")
    forms = {"plain": plain, "fused": lambda *arguments: plain(*arguments) * 1.01}

    with pytest.raises(RuntimeError, match="fused differs from plain by"):
        gpu.check_outputs(forms, TINY, (value, *others), tolerance=1e-3)


@needs_compiler
def test_models_are_measured_in_all_precisions(gpu, capsys):
    gpu.print_models(["demo"], ["highest", "bf16"], rounds=1, device="cpu")

    _, exact, rounded, _, *parts = table_rows(capsys.readouterr().out)
    assert exact[:3] == ["demo", "8x48x64", "highest"]
    assert rounded[2] == "bf16"
    assert float(exact[-1]) == 0 < float(rounded[-1]) < 0.1
    assert [row[:2] for row in parts] == [["demo", "highest"], ["demo", "bf16"]]
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("highest", True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_command_says_so(gpu, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["deformable_attention.py", "--device", "cuda", "--threads", "1"])

    with pytest.raises(SystemExit, match="^no GPU: PyTorch finds no CUDA device here, so nothing was measured$"):
        importlib.import_module("deformable_attention").main()

    assert capsys.readouterr().out == ""
