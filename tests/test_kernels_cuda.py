"""The CUDA kernels without a GPU: their source run on the CPU by an emulator, and their machine code.

What the emulator can find is said in kernels/emulator/cuda_emulator.h. It knows nothing of speed, of blocks that run
at the same time, and of the few lines that are machine instructions. Tests of the kernels on a GPU are at the end.
"""

import contextlib
import ctypes
import faulthandler
import functools
import importlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from utils import load_golden

from classquery.kernels import build, cpu, cuda, use_implementation
from classquery.ops_classquery import deformable_attention_3d, ms_deform_attn_3d


EMULATOR = Path(__file__).parents[1] / "kernels" / "emulator"
KERNELS = build.SOURCES / "deformable_attention.cu"
SHAPES = [(2, 3, 4), (1, 1, 1), (1, 2, 2)]

needs_compiler = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")
needs_nvrtc = pytest.mark.skipif(
    not (importlib.util.find_spec("cuda") and importlib.util.find_spec("cuda.bindings")), reason="no cuda-bindings"
)


def emulator_command(configuration: cuda.Configuration, flags: tuple[str, ...] = ()) -> list[str]:
    options = ["-std=c++17", "-O1", "-g", "-fPIC", "-shared", "-Wno-unknown-pragmas", *flags, f"-I{build.SOURCES}"]
    return [*build.compiler(), *options, *configuration.macros()]


@functools.cache
def emulated_kernels(configuration: cuda.Configuration, flags: tuple[str, ...] = ()) -> ctypes.CDLL:
    """The kernels of a configuration as functions for the CPU."""
    return ctypes.CDLL(str(emulating_library(configuration, flags)))


def emulating_library(configuration: cuda.Configuration, flags: tuple[str, ...] = ()) -> Path:
    sources = [EMULATOR / "emulated.cpp", EMULATOR / "cuda_emulator.h", KERNELS]
    return cached_library(emulator_command(configuration, flags), sources)


def cached_library(command: list[str], sources: list[Path]) -> Path:
    """What a command makes of the first source, which needs the others."""
    key = repr(command).encode() + b"".join(path.read_bytes() for path in sources)
    return build.cached(key, ".so", lambda: build.compile_library(command, sources[0]))


@contextlib.contextmanager
def emulated_cuda(backwards: bool = False, kernels: Callable[[cuda.Configuration], ctypes.CDLL] = emulated_kernels):
    """Within the context, tensors on the CPU are treated as those on a GPU, by the emulator.

    Args:
        backwards: Start with the last thread of each block.
        kernels: Other functions to call than those made from the kernels as they are.
    """

    def launch(configuration, kernel, num_blocks, problem, levels, device):
        getattr(kernels(configuration), f"emulate_{kernel}")(ctypes.byref(problem), levels, num_blocks, backwards)

    with pytest.MonkeyPatch.context() as patch, use_implementation("cpu"):
        patch.setattr(cuda, "_launch", launch)
        patch.setattr(cpu, "forward", cuda.forward)
        patch.setattr(cpu, "backward", cuda.backward)
        patch.setattr(cpu, "unavailable", lambda: None)
        yield


@contextlib.contextmanager
def emulated_driver():
    """Within the context, all of cuda.py runs on tensors on the CPU: on a GPU of PyTorch and a driver that are not.

    Yields the driver. For a process of its own: cuda-bindings keeps the driver that it finds first.
    """
    options = ["-std=c++17", "-O1", "-fPIC", "-shared", "-Wl,-soname,libcuda.so.1"]
    driver = ctypes.CDLL(str(cached_library([*build.compiler(), *options], [EMULATOR / "driver.cpp"])))
    compile_kernels = cuda.compile_kernels

    def compile_and_register(configuration, architecture):
        code = compile_kernels(configuration, architecture)
        assert driver.register_kernels(code, ctypes.c_size_t(len(code)), bytes(emulating_library(configuration)))
        return code

    gpu = {
        "is_available": lambda: True,
        "current_device": lambda: 0,
        "get_device_capability": lambda index: (9, 0),
        "device": lambda device: contextlib.nullcontext(),
        "current_stream": lambda: SimpleNamespace(cuda_stream=STREAM),
    }
    with pytest.MonkeyPatch.context() as patch, use_implementation("cpu"):
        for name, stub in gpu.items():
            patch.setattr(torch.cuda, name, stub)
        patch.setattr(torch.version, "cuda", "13.0")
        patch.setattr(cuda, "compile_kernels", compile_and_register)
        # Compiled anew, to be registered.
        patch.setattr(cuda, "cached", lambda key, suffix, make: SimpleNamespace(read_bytes=make))
        for name in ("forward", "backward", "unavailable"):
            patch.setattr(cpu, name, getattr(cuda, name))
        yield driver


class Launch(ctypes.Structure):
    """Mirrors `Launch` in driver.cpp."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("count", "num_blocks", "num_threads")),
        ("stream", ctypes.c_void_p),
    ]


STREAM = 0x57BEA4


@contextlib.contextmanager
def deterministic_algorithms():
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def random_inputs(value_dtype: torch.dtype, head_dim: int, device: str = "cpu") -> list[torch.Tensor]:
    """Arguments of the fused form but for the levels, which are SHAPES; the queries do not fill the last block."""
    generator = torch.Generator().manual_seed(0)
    dtype = torch.promote_types(value_dtype, torch.float32)
    sizes = ((2, 29, 3, head_dim), (2, 9, 3, 3), (2, 9, 3, 3, 4, 3), (2, 9, 3, 3, 4), (3, 3))
    value, references, *rest = (torch.randn(size, generator=generator, dtype=dtype) for size in sizes)
    inputs = [value.to(value_dtype), references.sigmoid(), *rest]
    return [tensor.to(device).requires_grad_() for tensor in inputs]


def results(inputs: list[torch.Tensor], attend=deformable_attention_3d) -> list[torch.Tensor]:
    """Output and gradients, by a sum in which every element weighs something else."""
    output = attend(inputs[0], SHAPES, *inputs[1:])
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype, device=output.device).view_as(output)
    return [output.detach(), *torch.autograd.grad(output, inputs, weights)]


def assert_close(ours: list[torch.Tensor], theirs: list[torch.Tensor], value_dtype: torch.dtype) -> None:
    """Output and the gradient by value are rounded to their type once; all else is a sum of a few hundred products."""
    rounding = torch.finfo(value_dtype).eps
    for index, (tensor, expected) in enumerate(zip(ours, theirs, strict=True)):
        tensor, expected = tensor.double().cpu(), expected.double().cpu()
        rtol = 2 * rounding if index < 2 else 0
        sums = 200 * torch.finfo(torch.promote_types(value_dtype, torch.float32)).eps
        torch.testing.assert_close(tensor, expected, rtol=rtol, atol=sums * expected.abs().max().item())


@needs_compiler
@pytest.mark.parametrize("name", ["op_odd", "op_4level"])
def test_emulated_kernels_match_the_golden(name):
    facts, tensors = load_golden(name)
    names = ("value", "sampling_locations", "attention_weights")
    value, locations, weights = (tensors[name].float().requires_grad_() for name in names)
    shapes = [tuple(shape) for shape in facts["shapes_thw"]]

    with emulated_cuda():
        output = ms_deform_attn_3d(value, shapes, locations, weights)
        output.backward(tensors["grad_output"].float())

    atol, rtol = facts["suggested"]["atol_fp32"], facts["suggested"]["rtol"]
    smooth = ~tensors["loc_grad_not_unique"].bool()
    for key, ours, expected in (
        ("output", output, tensors["output"]),
        ("grad_value", value.grad, tensors["grad_value"]),
        ("grad_w", weights.grad, tensors["grad_attention_weights"]),
        ("grad_loc", locations.grad[smooth], tensors["grad_sampling_locations"][smooth]),
    ):
        torch.testing.assert_close(ours.detach().double(), expected, atol=atol[key], rtol=rtol)


# One and several lanes per query and head, whole and parts of loads, and more loads than a warp has lanes.
@needs_compiler
@pytest.mark.parametrize(
    ("dtype", "head_dim"),
    [(torch.float32, 32), (torch.float64, 5), (torch.float16, 24), (torch.bfloat16, 32), (torch.float64, 66)],
)
def test_emulated_kernels_equal_plain_pytorch_whatever_thread_comes_first(dtype, head_dim):
    inputs = random_inputs(dtype, head_dim)

    with emulated_cuda():
        ours = results(inputs)
    with emulated_cuda(backwards=True):
        backwards = results(inputs)

    with use_implementation("torch"):
        expected = results(inputs)
    assert_close(ours, expected, dtype)
    for index, (one, other) in enumerate(zip(ours, backwards, strict=True)):
        # Only the gradient by value is summed in the order in which threads come.
        if index == 1:
            torch.testing.assert_close(one, other)
        else:
            assert torch.equal(one, other)


@needs_compiler
def test_deterministic_algorithms_sum_in_one_order():
    inputs = random_inputs(torch.float32, 40)

    with deterministic_algorithms():
        with emulated_cuda():
            ours = results(inputs)
        with emulated_cuda(backwards=True):
            backwards = results(inputs)

    assert all(torch.equal(one, other) for one, other in zip(ours, backwards, strict=True))
    with use_implementation("torch"):
        assert_close(ours, results(inputs), torch.float32)


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess:
    """Run code in a process of its own, with what this file defines at hand."""
    environment["PYTHONPATH"] = str(Path(__file__).parent)
    command = [sys.executable, "-c", f"from test_kernels_cuda import *\n{code}"]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)


def drive() -> None:
    """Run all of cuda.py on the driver that is not."""
    inputs = random_inputs(torch.float32, 32)
    with emulated_driver(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda, "compile_kernels", lambda *_: b"kernels for another GPU")
        assert cuda.unavailable() == "CUresult: CUDA_ERROR_NO_BINARY_FOR_GPU"
    cuda.unavailable.cache_clear()

    with emulated_driver() as driver:
        assert cuda.unavailable() is None, cuda.unavailable()
        ours = results(inputs)
        launch = Launch.in_dll(driver, "last_launch")
        assert (launch.count, launch.num_blocks, launch.num_threads, launch.stream) == (2, 2 * 3 * 1, 128, STREAM)
        with deterministic_algorithms():
            in_order = results(inputs)
        # Forward, the gradient by value and the others.
        assert launch.count == 5
        # A thread that has never seen the GPU, as autograd starts them.
        with ThreadPoolExecutor() as executor:
            assert_close(executor.submit(results, inputs).result(), ours, torch.float32)
        assert launch.count == 7
    with use_implementation("torch"):
        expected = results(inputs)
    for tensors in (ours, in_order):
        assert_close(tensors, expected, torch.float32)


@needs_compiler
@needs_nvrtc
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real driver")
def test_kernels_are_loaded_and_launched_as_a_driver_wants_it(tmp_path):
    # A process of its own, and a fork, which has imported everything already.
    child = os.fork()
    if child == 0:
        cuda.unavailable.cache_clear()
        with open(tmp_path / "log", "w") as log:
            try:
                drive()
            finally:
                traceback.print_exc(file=log)
                log.flush()
                os._exit(sys.exc_info()[0] is not None)
    _, status = os.waitpid(child, 0)

    assert status == 0, (tmp_path / "log").read_text()


class RecordedOperators(TorchDispatchMode):
    """Names of the operators of PyTorch that run within the context."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


@needs_compiler
def test_a_launch_copies_nothing_and_waits_for_nothing():
    """Only memory is asked for, on the device: so a CUDA graph can hold it."""
    value, *tensors = [tensor.detach() for tensor in random_inputs(torch.float32, 32)]
    references, offsets, logits, scale = tensors
    arguments = (value, [size for shape in SHAPES for size in shape], offsets, logits, references, scale)

    with emulated_cuda(), RecordedOperators() as forward:
        output = cuda.forward(*arguments)
    with emulated_cuda(), RecordedOperators() as backward:
        cuda.backward(output, *arguments, True, True)

    assert forward.names == {"new_empty", "promote_types"}
    assert backward.names == {"new_empty", "empty_like", "zeros_like", "promote_types"}


@needs_nvrtc
def test_arguments_have_the_size_that_the_kernels_expect():
    code = cuda.compile_kernels(cuda.Configuration(num_levels=3), "compute_80").decode()

    sizes = dict(re.findall(r"\.param \.align \d \.b8 (\w+)\[(\d+)\]", code))
    for kernel in ("forward", "backward", "backward_value_in_order"):
        assert int(sizes[f"{kernel}_param_0"]) == ctypes.sizeof(cuda._Problem)
        assert int(sizes[f"{kernel}_param_1"]) == ctypes.sizeof(ctypes.c_int * 9)


BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

EMULATED_IM2COL = """
#include "cuda_emulator.h"
#include "im2col.cu"
extern "C" void emulate(const Problem& problem, unsigned num_blocks, bool backward) {
  emulated::launch(num_blocks, THREADS, false, [&] { backward ? im2col_backward(problem) : im2col_forward(problem); });
}
"""


@pytest.fixture
def im2col(monkeypatch):
    """The benchmark's kernel with a thread per channel."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("im2col")


@needs_compiler
def test_the_kernel_to_compare_with_computes_the_same(im2col, monkeypatch, tmp_path):
    (tmp_path / "emulated.cpp").write_text(EMULATED_IM2COL)
    folders = [f"-I{EMULATOR}", f"-I{BENCHMARKS}", f"-DTHREADS={im2col.THREADS}"]
    options = ["-std=c++17", "-O1", "-fPIC", "-shared", "-Wno-unknown-pragmas", *folders]
    (tmp_path / "emulated.so").write_bytes(
        build.compile_library([*build.compiler(), *options], tmp_path / "emulated.cpp")
    )
    library = ctypes.CDLL(str(tmp_path / "emulated.so"))

    def emulate(kernel, problem):
        num_blocks = -(-problem.count // im2col.THREADS)
        library.emulate(ctypes.byref(problem), num_blocks, kernel == "im2col_backward")

    monkeypatch.setattr(im2col, "launch", emulate)
    inputs = random_inputs(torch.float32, 12)

    ours = results(inputs, im2col.attend)

    with use_implementation("torch"):
        assert_close(ours, results(inputs), torch.float32)


@needs_nvrtc
def test_the_kernel_to_compare_with_compiles(im2col):
    assert im2col.compile_kernels("sm_90").startswith(b"\x7fELF")


def mutated_kernels(tmp_path: Path, old: str, new: str) -> Callable[[cuda.Configuration], ctypes.CDLL]:
    """The kernels with a mistake in them."""
    source = KERNELS.read_text()
    assert old in source
    (tmp_path / KERNELS.name).write_text(source.replace(old, new))

    @functools.cache
    def kernels(configuration: cuda.Configuration) -> ctypes.CDLL:
        library = tmp_path / f"{configuration.head_dim}.so"
        command = emulator_command(configuration, (f"-I{tmp_path}",))
        library.write_bytes(build.compile_library(command, EMULATOR / "emulated.cpp"))
        return ctypes.CDLL(str(library))

    return kernels


@needs_compiler
def test_the_emulator_shows_a_missing_barrier(tmp_path):
    kernels = mutated_kernels(tmp_path, "attention(own));\n    __syncwarp();", "attention(own));")
    inputs = random_inputs(torch.float32, 32)

    with emulated_cuda(kernels=kernels), torch.no_grad():
        one = deformable_attention_3d(inputs[0], SHAPES, *inputs[1:])
    with emulated_cuda(backwards=True, kernels=kernels), torch.no_grad():
        other = deformable_attention_3d(inputs[0], SHAPES, *inputs[1:])

    assert not torch.equal(one, other)


@needs_compiler
@pytest.mark.parametrize("mistake", ["if (place.lane == 0) __syncwarp();", "if (place.lane == 0) return;"])
def test_the_emulator_ends_the_process_when_lanes_do_not_meet(tmp_path, mistake):
    start = "  const Channels channels{place.lane};\n"
    kernels = mutated_kernels(tmp_path, start, f"{start}  {mistake}\n")
    kernels(cuda.Configuration(num_heads=3, num_levels=3, num_points=4))

    child = os.fork()
    if child == 0:
        faulthandler.disable()  # pytest's would print a page
        with emulated_cuda(kernels=kernels), torch.no_grad():
            inputs = random_inputs(torch.float32, 32)
            deformable_attention_3d(inputs[0], SHAPES, *inputs[1:])
        os._exit(0)
    _, status = os.waitpid(child, 0)

    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGABRT


SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def run_sanitized(code: str, cache: Path) -> subprocess.CompletedProcess:
    """Run code in a process that can load sanitized libraries, with what this file defines at hand."""
    runtimes = [
        subprocess.run([*build.compiler(), f"-print-file-name={name}"], capture_output=True, text=True, check=True)
        for name in ("libasan.so", "libubsan.so")
    ]
    preloaded = " ".join(runtime.stdout.strip() for runtime in runtimes)
    return run_python(code, LD_PRELOAD=preloaded, ASAN_OPTIONS="detect_leaks=0", XDG_CACHE_HOME=str(cache))


RUN_EMULATED = """
kernels = functools.partial(emulated_kernels, flags={flags})
for dtype, head_dim in ((torch.float32, 32), (torch.bfloat16, 6)):
    with emulated_cuda(kernels=kernels):
        results(random_inputs(dtype, head_dim))
        with deterministic_algorithms():
            results(random_inputs(dtype, head_dim))
"""


@needs_compiler
@pytest.mark.slow
def test_emulated_kernels_touch_no_memory_but_theirs(tmp_path):
    result = run_sanitized(RUN_EMULATED.format(flags=SANITIZERS), tmp_path)

    assert result.returncode == 0, result.stderr


@needs_compiler
@pytest.mark.slow
def test_sanitizers_show_a_corner_read_outside_of_its_level(tmp_path):
    source = KERNELS.read_text()
    clamped = "min(max(index, 0), size[axis] - 1)"
    assert clamped in source
    (tmp_path / KERNELS.name).write_text(source.replace(clamped, "index"))

    result = run_sanitized(RUN_EMULATED.format(flags=(*SANITIZERS, f"-I{tmp_path}")), tmp_path)

    assert result.returncode != 0
    assert "AddressSanitizer" in result.stderr


@needs_compiler
@pytest.mark.slow
def test_the_library_for_the_cpu_touches_no_memory_but_its(tmp_path):
    code = f"""
build.CXX_FLAGS += {SANITIZERS}
with use_implementation("cpu"):
    for dtype, head_dim in ((torch.float32, 32), (torch.float32, 5), (torch.float64, 66)):
        for num_threads in (1, 7):
            torch.set_num_threads(num_threads)
            results(random_inputs(dtype, head_dim))
"""
    result = run_sanitized(code, tmp_path)

    assert result.returncode == 0, result.stderr


def disassembler() -> str | None:
    """From the CUDA toolkit, or as it comes with triton."""
    triton = importlib.util.find_spec("triton")
    if triton is None:
        return shutil.which("nvdisasm")
    return shutil.which("nvdisasm", path=Path(triton.origin).parent / "backends" / "nvidia" / "bin") or shutil.which(
        "nvdisasm"
    )


def instructions(code: bytes, tmp_path: Path) -> dict[str, list[str]]:
    """Machine instructions of each kernel."""
    path = tmp_path / "kernels.cubin"
    path.write_bytes(code)
    listing = subprocess.run([disassembler(), "-c", path], capture_output=True, text=True, check=True).stdout
    sections = re.split(r"^\s*\.section\s+\.text\.(\w+),.*$", listing, flags=re.MULTILINE)
    return {
        name: re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", body, flags=re.MULTILINE)
        for name, body in zip(sections[1::2], sections[2::2], strict=True)
    }


@needs_nvrtc
@pytest.mark.skipif(disassembler() is None, reason="no nvdisasm")
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_machine_code_keeps_to_registers_and_loads_16_bytes_at_a_time(tmp_path, architecture, dtype):
    kernels = instructions(cuda.compile_kernels(cuda.Configuration(dtype), architecture), tmp_path)

    assert set(kernels) == {"forward", "backward", "backward_value_in_order"}

    def count(kernel: str, pattern: str) -> int:
        return sum(re.search(pattern, instruction) is not None for instruction in kernels[kernel])

    for kernel in kernels:
        assert count(kernel, r"\b(LDL|STL)\b") == 0  # nothing is spilled to memory
    # Eight corners, and once the gradient of the output.
    assert count("forward", r"\bLDG\.E\.128") == 8
    assert count("backward", r"\bLDG\.E\.128") == 9
    # Additions to memory: each of eight corners, four numbers at a time on Hopper.
    num_channels = cuda.Configuration(dtype).vector
    assert count("backward", r"\bREDG?\.") == 8 * num_channels / (4 if architecture == "sm_90" else 1)
    # Twice as many would be a step back: 670 to 880 and 1,130 to 1,270 with NVRTC 13.0.
    assert len(kernels["forward"]) < 1100
    assert len(kernels["backward"]) < 1500


@needs_nvrtc
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
@pytest.mark.parametrize("head_dim", [1, 5, 256])
def test_all_types_and_sizes_of_heads_compile(dtype, head_dim):
    configuration = cuda.Configuration(dtype, num_heads=3, head_dim=head_dim, num_levels=1, num_points=3, fused=False)

    assert cuda.compile_kernels(configuration, "sm_80").startswith(b"\x7fELF")


@needs_nvrtc
def test_for_gpus_newer_than_the_compiler_there_is_portable_code():
    assert b".target sm_90" in cuda.compile_kernels(cuda.Configuration(), "compute_90")


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
def test_nvcc_compiles_the_kernels_as_well(monkeypatch):
    monkeypatch.setenv("CLASSQUERY_NVCC", "nvcc")

    assert cuda.compile_kernels(cuda.Configuration(), "sm_80").startswith(b"\x7fELF")


@needs_nvrtc
def test_what_nvrtc_says_is_handed_on():
    with pytest.raises(build.BuildError, match="failed:\nnvrtc: error: invalid value for --gpu-architecture"):
        cuda.compile_kernels(cuda.Configuration(), "sm_1")


def test_groups_of_lanes_fit_the_head():
    def layout(dtype, head_dim):
        configuration = cuda.Configuration(dtype, head_dim=head_dim)
        return configuration.vector, configuration.lanes, configuration.queries_per_block

    assert layout(torch.float32, 32) == (4, 8, 16)
    assert layout(torch.bfloat16, 32) == (8, 4, 32)
    assert layout(torch.float64, 66) == (2, 32, 4)
    assert layout(torch.float16, 24) == (8, 4, 32)
    assert layout(torch.float32, 1) == (1, 1, 128)


@pytest.mark.parametrize(
    ("dtype", "head_dim"),
    [(torch.float32, 32), (torch.float64, 5), (torch.float16, 24), (torch.bfloat16, 32), (torch.float64, 66)],
)
@pytest.mark.parametrize("deterministic", [False, True])
def test_kernels_on_a_gpu_equal_plain_pytorch_on_the_cpu(gpu, dtype, head_dim, deterministic):
    inputs = random_inputs(dtype, head_dim, gpu)

    with use_implementation("cuda"), deterministic_algorithms() if deterministic else contextlib.nullcontext():
        ours = results(inputs)
        again = results(inputs)

    with use_implementation("torch"):
        expected = results([tensor.detach().cpu().requires_grad_() for tensor in inputs])
    assert_close(ours, expected, dtype)
    assert not deterministic or all(torch.equal(one, other) for one, other in zip(ours, again, strict=True))


def test_a_graph_of_the_operator_is_captured_and_replayed_on_new_values(gpu):
    inputs = [tensor.detach() for tensor in random_inputs(torch.float32, 32, gpu)]
    with use_implementation("cuda"):
        deformable_attention_3d(inputs[0], SHAPES, *inputs[1:])  # compiles and loads
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = deformable_attention_3d(inputs[0], SHAPES, *inputs[1:])
        inputs[0].normal_()
        graph.replay()

        assert torch.equal(output, deformable_attention_3d(inputs[0], SHAPES, *inputs[1:]))


def test_a_fresh_thread_launches_on_a_gpu(gpu):
    inputs = random_inputs(torch.float32, 32, gpu)
    with use_implementation("cuda"), ThreadPoolExecutor() as executor:
        cuda.unavailable()
        ours = executor.submit(results, inputs).result()

        assert_close(ours, results(inputs), torch.float32)
