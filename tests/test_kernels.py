"""What only the compiled implementations promise, and the choice between them and plain PyTorch."""

import logging
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mutations import mutations
from test_kernels_cuda import needs_nvrtc
from test_ops_classquery import SHAPES, gradients, random_inputs

from classquery import kernels
from classquery.kernels import build, choice, cpu, cuda
from classquery.kernels.__main__ import DTYPES, main
from classquery.ops_classquery import deformable_attention_3d


@pytest.fixture
def needs_compiler():
    if reason := cpu.unavailable():
        pytest.skip(reason)


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """As in a new process, with an empty cache."""
    caches = (build.cache_folder, build.why_not_loaded, build.load_library, choice._warn_once)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "BUILT_AHEAD", tmp_path / "built_ahead")
    for function in caches:
        function.cache_clear()
    yield tmp_path / "classquery"
    for function in caches:
        function.cache_clear()


@pytest.fixture
def quick_builds(monkeypatch):
    """Without optimization, which is most of the time that compiling takes."""
    monkeypatch.setattr(build, "CXX_FLAGS", [flag.replace("-O3", "-O0") for flag in build.CXX_FLAGS])


def attend(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return deformable_attention_3d(spatio_temporal_shapes=SHAPES, **inputs)


@pytest.mark.usefixtures("needs_compiler")
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_operators_keep_the_rules_of_torch_library(fused, dtype):
    inputs = {name: tensor.to(dtype).requires_grad_() for name, tensor in random_inputs().items()}
    flat = [size for shape in SHAPES for size in shape]
    samples = inputs["sampling_offsets"], inputs["attention_logits"]
    references = (inputs["reference_points"], inputs["offset_scale"]) if fused else (None, None)
    arguments = (inputs["value"], flat, *samples, *references)

    torch.library.opcheck(torch.ops.classquery.deformable_attention_3d, arguments)
    grad_output = torch.ones(2, 6, 15, dtype=dtype)
    plain = [argument.detach() if isinstance(argument, torch.Tensor) else argument for argument in arguments]
    for needs_value, needs_samples in ((True, False), (False, True), (True, True)):
        torch.library.opcheck(
            torch.ops.classquery.deformable_attention_3d_backward,
            (grad_output, *plain, needs_value, needs_samples),
            test_utils=("test_schema", "test_faketensor"),
        )


@pytest.mark.usefixtures("needs_compiler")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_do_not_depend_on_the_number_of_threads(dtype):
    inputs = {name: tensor.requires_grad_() for name, tensor in random_inputs(dtype, head_dim=32).items()}

    def results(num_threads: int) -> list[torch.Tensor]:
        torch.set_num_threads(num_threads)
        output = attend(inputs)
        return [output, *gradients(output, list(inputs.values()))]

    before = torch.get_num_threads()
    try:
        expected = results(1)
        # Fewer, as many and more threads than there are slices.
        for num_threads in (2, 6, 7):
            for ours, theirs in zip(results(num_threads), expected, strict=True):
                assert torch.equal(ours, theirs)
    finally:
        torch.set_num_threads(before)


@pytest.mark.usefixtures("needs_compiler")
def test_only_the_arguments_are_kept_for_the_gradient():
    inputs = {name: tensor.requires_grad_() for name, tensor in random_inputs().items()}
    kept = []

    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        attend(inputs)

    assert {tensor.data_ptr() for tensor in kept} == {tensor.data_ptr() for tensor in inputs.values()}


@pytest.mark.usefixtures("needs_compiler")
def test_second_derivatives_are_refused():
    inputs = {name: tensor.requires_grad_() for name, tensor in random_inputs().items()}
    (gradient,) = torch.autograd.grad(attend(inputs).sum(), inputs["value"], create_graph=True)

    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.sum().backward()


@pytest.mark.usefixtures("needs_compiler")
def test_a_gradient_of_the_wrong_shape_is_refused():
    inputs = random_inputs()
    arguments = [inputs[name] for name in ("sampling_offsets", "attention_logits", "reference_points", "offset_scale")]

    with pytest.raises(ValueError, match="grad_output must have shape"):
        torch.ops.classquery.deformable_attention_3d_backward(
            torch.ones(2, 6, 14), inputs["value"], [size for shape in SHAPES for size in shape], *arguments, True, True
        )


@pytest.mark.usefixtures("needs_compiler")
def test_references_without_a_scale_are_refused():
    inputs = random_inputs()
    flat = [size for shape in SHAPES for size in shape]
    arguments = [inputs[name] for name in ("sampling_offsets", "attention_logits", "reference_points")]

    with pytest.raises(ValueError, match="go together"):
        torch.ops.classquery.deformable_attention_3d(inputs["value"], flat, *arguments, None)


@pytest.mark.usefixtures("needs_compiler")
def test_compiled_graphs_hold_one_operator_and_exported_ones_plain_pytorch():
    inputs = random_inputs(torch.float32)

    class Attend(torch.nn.Module):
        def forward(self, inputs):
            return attend(inputs)

    targets = []

    def record(graph, example_inputs):
        targets.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph

    torch.compile(Attend(), fullgraph=True, backend=record)(inputs)
    exported = torch.export.export(Attend(), (inputs,))

    assert targets == ["classquery.deformable_attention_3d"]
    assert not any("classquery" in str(node.target) for node in exported.graph.nodes)
    # float32: sums in another order.
    torch.testing.assert_close(exported.module()(inputs), attend(inputs), atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("needs_compiler")
def test_the_fastest_is_chosen_unless_another_is_asked_for(monkeypatch):
    assert kernels.chosen("cpu") == "cpu"
    assert kernels.chosen("mps") == "torch"
    monkeypatch.setenv("CLASSQUERY_KERNELS", "torch")
    assert kernels.chosen("cpu") == "torch"
    with kernels.use_implementation("cpu"):
        assert kernels.chosen("cpu") == "cpu"
        with pytest.raises(RuntimeError, match="the tensors are on mps"):
            kernels.chosen("mps")
    with kernels.use_implementation("auto"):
        assert kernels.chosen("cpu") == "cpu"
    assert kernels.chosen("cpu") == "torch"


def test_unknown_implementations_are_refused(monkeypatch):
    with (
        pytest.raises(ValueError, match="use_implementation must be one of auto, torch, cpu"),
        kernels.use_implementation("gpu"),
    ):
        pass
    monkeypatch.setenv("CLASSQUERY_KERNELS", "fast")
    with pytest.raises(ValueError, match="CLASSQUERY_KERNELS must be one of"):
        kernels.chosen("cpu")


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [
        ("/nowhere/c++", "could not be started"),
        ("false", "failed"),
        ("true", "left 0 bytes that are no library"),
        ("c++ 'without end", "CXX is no command"),
        (None, "no C\\+\\+ compiler"),
    ],
)
def test_without_a_working_compiler_plain_pytorch_runs_and_says_so_once(fresh, monkeypatch, caplog, compiler, reason):
    if compiler is None:
        monkeypatch.delenv("CXX", raising=False)
        monkeypatch.setattr(build.shutil, "which", lambda name: None)
    else:
        monkeypatch.setenv("CXX", compiler)
    inputs = random_inputs()

    with caplog.at_level(logging.WARNING):
        output = attend(inputs)
        attend(inputs)

    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert reason.replace("\\", "") in record.message
    with kernels.use_implementation("torch"):
        assert torch.equal(output, attend(inputs))
    with kernels.use_implementation("cpu"), pytest.raises(RuntimeError, match=reason):
        attend(inputs)
    assert kernels.implementations()["cpu"].startswith("not available: ")


@pytest.mark.usefixtures("needs_compiler", "quick_builds")
def test_a_build_is_kept_for_the_next_process(fresh, monkeypatch):
    assert cpu.unavailable() is None
    (library,) = fresh.iterdir()

    monkeypatch.setattr(build, "compile_library", None)
    build.load_library.cache_clear()
    cpu._library()

    assert list(fresh.iterdir()) == [library]


@pytest.mark.usefixtures("needs_compiler", "quick_builds")
def test_a_damaged_library_is_built_again_before_it_is_loaded(fresh):
    """Half a library ends the process that loads it: the system maps pages that the file does not have."""
    library = build.cpp_library(build.SOURCES / "deformable_attention.cpp")
    content = library.read_bytes()
    for damaged in (content[: len(content) // 2], b"", *mutations(content, 2)):
        library.write_bytes(damaged)

        assert build.cpp_library(build.SOURCES / "deformable_attention.cpp") == library
        assert library.read_bytes() == content
    assert cpu.unavailable() is None


@pytest.mark.usefixtures("fresh")
def test_a_damaged_library_that_was_built_ahead_is_passed_over(monkeypatch):
    monkeypatch.setattr(build, "compile_library", lambda command, source: b"a library")
    ahead = build.build_ahead(build.SOURCES / "deformable_attention.cpp")
    assert build.cpp_library(build.SOURCES / "deformable_attention.cpp") == ahead

    ahead.write_bytes(b"a lib")

    assert build.cpp_library(build.SOURCES / "deformable_attention.cpp").parent == build.cache_folder()


@pytest.mark.usefixtures("fresh")
def test_only_what_is_whole_comes_out_of_the_cache():
    """Damaged in any way, what is kept is made again."""
    path = build.cached(b"a key", ".so", lambda: bytes(range(256)))
    content = path.read_bytes()

    for damaged in mutations(content, 200):
        path.write_bytes(damaged)
        assert build.cached(b"a key", ".so", lambda: content) == path
        assert path.read_bytes() == content


@pytest.mark.usefixtures("needs_compiler", "quick_builds")
def test_half_a_library_of_a_compiler_is_no_library(fresh, tmp_path, monkeypatch):
    """As on a full disk."""
    command = [*build.compiler(), *build.CXX_FLAGS]
    whole = build.compile_library(command, build.SOURCES / "deformable_attention.cpp")
    (tmp_path / "half.so").write_bytes(whole[: len(whole) // 2])
    script = tmp_path / "compiler"
    script.write_text(f'#!/bin/sh\nfor last; do :; done\ncp "{tmp_path}/half.so" "$last"\n')
    script.chmod(0o755)

    with pytest.raises(build.BuildError, match="bytes that are no library"):
        build.compile_library([str(script)], build.SOURCES / "deformable_attention.cpp")


@pytest.mark.usefixtures("needs_compiler", "quick_builds")
def test_builds_at_the_same_time_do_not_disturb_each_other(fresh):
    with ThreadPoolExecutor() as executor:
        paths = list(executor.map(lambda _: build.cpp_library(build.SOURCES / "deformable_attention.cpp"), range(3)))

    assert len(set(paths)) == 1
    assert list(fresh.iterdir()) == paths[:1]
    assert cpu.unavailable() is None


@pytest.mark.usefixtures("needs_compiler", "quick_builds")
def test_without_a_writable_cache_the_build_lasts_for_the_process(fresh, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", os.devnull)

    assert cpu.unavailable() is None
    assert attend(random_inputs()).isfinite().all()
    assert build.cache_folder().name.startswith("classquery-")


@pytest.mark.usefixtures("needs_compiler")
def test_a_library_that_cannot_be_loaded_is_a_reason_not_a_crash(fresh, monkeypatch):
    monkeypatch.setattr(build, "compile_library", lambda command, source: b"no library")

    assert "could not be loaded" in cpu.unavailable()


@pytest.mark.usefixtures("needs_compiler", "quick_builds")
def test_what_is_built_ahead_runs_without_a_compiler_and_beside_any_pytorch(fresh, monkeypatch, capsys):
    main(["build"])
    library, colors = capsys.readouterr().out.replace("cpu      ", "").splitlines()
    assert {str(path) for path in build.BUILT_AHEAD.iterdir()} == {library, colors}

    monkeypatch.setenv("CXX", "false")
    expected = attend(random_inputs())

    assert cpu.unavailable() is None
    assert cpu._library()._name == library
    assert kernels.pixels._library()._name == colors
    with kernels.use_implementation("torch"):
        torch.testing.assert_close(expected, attend(random_inputs()))
    # It names nothing of PyTorch's, whose C++ names change from version to version.
    if shutil.which("nm"):
        symbols = subprocess.run(["nm", "-D", library], capture_output=True, text=True, check=True).stdout
        assert "forward_float" in symbols
        assert not any(name in symbols for name in ("torch", "c10", "2at"))


def test_what_cannot_be_built_ahead_is_an_error(fresh, monkeypatch):
    monkeypatch.setenv("CXX", "false")

    with pytest.raises(build.BuildError, match="failed"):
        main(["build"])


@pytest.mark.usefixtures("needs_compiler", "fresh")
def test_what_is_built_ahead_may_be_read_by_all_users(monkeypatch):
    monkeypatch.setattr(build, "compile_library", lambda command, source: b"a library")
    previous = os.umask(0o022)
    try:
        library = build.build_ahead(build.SOURCES / "deformable_attention.cpp")
    finally:
        os.umask(previous)

    assert library.stat().st_mode & 0o777 == 0o644
    assert list(build.BUILT_AHEAD.iterdir()) == [library]


@needs_nvrtc
def test_kernels_for_gpus_are_compiled_ahead_into_the_cache_of_their_first_use(fresh, monkeypatch, capsys):
    monkeypatch.setattr("classquery.kernels.__main__.build_ahead", lambda source: "a library")
    main(["build", "--gpus", "sm_90", "compute_90", "--dtypes", "bfloat16"])

    lines = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert [(gpu, dtype) for gpu, _, _, dtype in lines] == [("sm_90", "bfloat16"), ("compute_90", "bfloat16")]
    machine_code, portable = (Path(path) for _, path, _, _ in lines)
    assert {machine_code, portable} == set(fresh.iterdir())
    assert machine_code.read_bytes().startswith(b"\x7fELF")
    assert b".target sm_90" in portable.read_bytes()
    # What a GPU asks for later is there.
    monkeypatch.setattr(cuda, "compile_kernels", None)
    assert cuda.compiled_kernels(cuda.Configuration(torch.bfloat16), "sm_90") == machine_code


def test_the_types_of_the_command_are_those_of_the_kernels():
    assert [getattr(torch, name) for name in DTYPES] == list(cuda.TYPES)


@needs_nvrtc
def test_gpus_that_do_not_exist_are_refused(fresh, monkeypatch, capsys):
    monkeypatch.setattr("classquery.kernels.__main__.build_ahead", lambda source: "a library")

    with pytest.raises(build.BuildError, match="sm_1 .*failed:\nnvrtc: error: invalid value"):
        main(["build", "--gpus", "sm_1"])
    with pytest.raises(SystemExit):
        main(["build", "--gpus", "sm_90", "hopper"])

    assert "a GPU is named as sm_90 or compute_90, got 'hopper'" in capsys.readouterr().err
    assert not list(fresh.iterdir())


def test_without_nvrtc_kernels_for_gpus_are_an_error_with_a_remedy(monkeypatch):
    monkeypatch.setattr("classquery.kernels.__main__.build_ahead", lambda source: "a library")

    def fail():
        raise RuntimeError("no libnvrtc.so.13")

    nvrtc = SimpleNamespace(nvrtcVersion=fail)
    for name, module in {"cuda": {}, "cuda.bindings": {"nvrtc": nvrtc}}.items():
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(__path__=[], **module))
    with pytest.raises(build.BuildError, match="NVRTC was not found; install nvidia-cuda-nvrtc .* no libnvrtc.so.13"):
        main(["build", "--gpus", "sm_90"])
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(build.BuildError, match="pip install cuda-bindings"):
        main(["build", "--gpus", "sm_90"])


@pytest.mark.usefixtures("fresh", "quick_builds")
def test_the_command_says_what_is_available(capsys):
    main([])

    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["torch", "cpu", "cuda"]
