"""The CUDA implementation: compiled for the GPU and the sizes at hand by NVRTC, which comes with PyTorch.

The kernels are called with addresses through the CUDA driver, so no C++ compiler and no toolkit is needed. Who prefers
nvcc names it in the environment variable `CLASSQUERY_NVCC`.
"""

import ctypes
import functools
import importlib.util
import math
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from .build import SOURCES, BuildError, cached, run_command


_SOURCE = SOURCES / "deformable_attention.cu"
_THREADS = 128
_WARP = 32
_BYTES_PER_LOAD = 16
TYPES = {
    torch.float16: ("Half", "float"),
    torch.bfloat16: ("BFloat16", "float"),
    torch.float32: ("float", "float"),
    torch.float64: ("double", "double"),
}


@dataclass(frozen=True)
class Configuration:
    """What the kernels are compiled for; documented in deformable_attention.cu."""

    dtype: torch.dtype = torch.float32
    num_heads: int = 8
    head_dim: int = 32
    num_levels: int = 4
    num_points: int = 8
    fused: bool = True

    @property
    def vector(self) -> int:
        """Channels per load: the largest power of two that divides the head and fits."""
        return min(self.head_dim & -self.head_dim, _BYTES_PER_LOAD // self.dtype.itemsize)

    @property
    def lanes(self) -> int:
        """Lanes per query and head: at least one per load, if a warp has as many."""
        return min(1 << (self.head_dim // self.vector - 1).bit_length(), _WARP)

    @property
    def queries_per_block(self) -> int:
        """One for each group of lanes."""
        return _THREADS // self.lanes

    def macros(self) -> list[str]:
        """Options of the compiler."""
        value, real = TYPES[self.dtype]
        values = {
            "VALUE": value,
            "REAL": real,
            "NUM_HEADS": self.num_heads,
            "HEAD_DIM": self.head_dim,
            "NUM_LEVELS": self.num_levels,
            "NUM_POINTS": self.num_points,
            "FUSED": int(self.fused),
            "VECTOR": self.vector,
            "LANES": self.lanes,
            "THREADS": _THREADS,
        }
        return [f"-D{name}={value}" for name, value in values.items()]


class _Problem(ctypes.Structure):
    """Mirrors `Problem` in deformable_attention.cu."""

    _fields_ = [
        *(
            (name, ctypes.c_void_p)
            for name in (
                *("value", "samples", "weights", "reference_points", "offset_scale", "grad_output"),
                *("output", "grad_value", "grad_samples", "grad_weights"),
            )
        ),
        *((name, ctypes.c_longlong) for name in ("num_slices", "num_cells", "num_queries")),
    ]


@functools.cache
def unavailable() -> str | None:
    """Why this implementation cannot run here, or None if it can; tries it out at the first call."""
    if torch.version.cuda is None:
        return "this PyTorch is built without CUDA"
    if not torch.cuda.is_available():
        return "PyTorch finds no CUDA GPU"
    if not (importlib.util.find_spec("cuda") and importlib.util.find_spec("cuda.bindings")):
        return "cuda-bindings is not installed: pip install cuda-bindings"
    device_index = torch.cuda.current_device()  # which starts the driver
    try:
        _enter_context(device_index)
        _load(Configuration(), device_index)
    except BuildError as error:
        return str(error)
    return None


def forward(
    value: torch.Tensor,
    shapes: list[int],
    samples: torch.Tensor,
    weights: torch.Tensor,
    reference_points: torch.Tensor | None,
    offset_scale: torch.Tensor | None,
) -> torch.Tensor:
    """Output of the operator; arguments as in ops.py, and checked."""
    inputs = _inputs(value, samples, weights, reference_points, offset_scale)
    output = value.new_empty(*samples.shape[:2], value.shape[2] * value.shape[3])
    _run("forward", shapes, inputs, {"output": output})
    return output


def backward(
    grad_output: torch.Tensor,
    value: torch.Tensor,
    shapes: list[int],
    samples: torch.Tensor,
    weights: torch.Tensor,
    reference_points: torch.Tensor | None,
    offset_scale: torch.Tensor | None,
    needs_value: bool,
    needs_samples: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients by `value`, by the sampling locations and by `weights`; empty where not asked for.

    The gradient by `value` is summed in float32 at least, and in a fixed order with deterministic algorithms.
    """
    inputs = _inputs(value, samples, weights, reference_points, offset_scale)
    inputs["grad_output"] = _aligned(grad_output.to(value.dtype))
    by_value, by_samples = {}, {}
    if needs_value:
        by_value = {"grad_value": torch.zeros_like(inputs["value"], dtype=inputs["samples"].dtype)}
    if needs_samples:
        by_samples = {f"grad_{name}": torch.empty_like(inputs[name]) for name in ("samples", "weights")}
    if needs_value and torch.are_deterministic_algorithms_enabled():
        _run("backward_value_in_order", shapes, inputs, by_value)
        if needs_samples:
            _run("backward", shapes, inputs, by_samples)
    else:
        _run("backward", shapes, inputs, by_value | by_samples)
    outputs = by_value | by_samples
    return (
        outputs.get("grad_value", value.new_empty(0)).to(value.dtype),
        outputs.get("grad_samples", inputs["samples"].new_empty(0)),
        outputs.get("grad_weights", inputs["weights"].new_empty(0)),
    )


def compile_kernels(configuration: Configuration, architecture: str) -> bytes:
    """Machine code of all kernels for a GPU such as "sm_90", or, for a GPU newer than the compiler, "compute_90".

    Raises:
        BuildError: If the compiler refuses.
    """
    return compile_source(_SOURCE, [f"--gpu-architecture={architecture}", "--std=c++17", *configuration.macros()])


def compile_source(source: Path, options: list[str]) -> bytes:
    """What NVRTC or nvcc makes of a CUDA file; the first of the options names the GPU."""
    if nvcc := os.environ.get("CLASSQUERY_NVCC"):
        return _compile_with_nvcc(nvcc, source, options)
    return _compile_with_nvrtc(source, options)


def compiled_kernels(configuration: Configuration, architecture: str) -> Path:
    """File with the machine code of all kernels, compiled unless the cache has it; needs no GPU.

    Raises:
        BuildError: If the compiler refuses.
    """
    nvcc = os.environ.get("CLASSQUERY_NVCC")
    version = run_command([nvcc, "--version"]) if nvcc else _check(*_nvrtc().nvrtcVersion())
    key = repr((nvcc, version, architecture, configuration)).encode() + _SOURCE.read_bytes()
    return cached(key, ".cubin", lambda: compile_kernels(configuration, architecture))


def _nvrtc():
    """The compiler, which comes with PyTorch for CUDA.

    Raises:
        BuildError: If it is not there.
    """
    try:
        from cuda.bindings import nvrtc
    except ImportError as error:
        raise BuildError(f"cuda-bindings is not installed ({error}): pip install cuda-bindings") from error
    try:
        nvrtc.nvrtcVersion()  # loads the library
    except RuntimeError as error:
        raise BuildError(f"NVRTC was not found; install nvidia-cuda-nvrtc or set CLASSQUERY_NVCC: {error}") from error
    return nvrtc


def _compile_with_nvcc(nvcc: str, source: Path, options: list[str]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernels"
        kind = "-cubin" if "=sm_" in options[0] else "-ptx"
        run_command([nvcc, kind, *options, str(source), "-o", str(path)])
        return path.read_bytes()


def _compile_with_nvrtc(source: Path, options: list[str]) -> bytes:
    nvrtc = _nvrtc()
    error, program = nvrtc.nvrtcCreateProgram(source.read_bytes(), source.name.encode(), 0, [], [])
    _check(error)
    (error,) = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
    if error != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        log = bytearray(_check(*nvrtc.nvrtcGetProgramLogSize(program)))
        _check(*nvrtc.nvrtcGetProgramLog(program, log))
        raise BuildError(f"NVRTC with {' '.join(options)} failed:\n{log.rstrip(bytes(1)).decode()[:2000]}")
    real = "=sm_" in options[0]
    get_size, get = (
        (nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN) if real else (nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX)
    )
    code = bytearray(_check(*get_size(program)))
    _check(*get(program, code))
    _check(*nvrtc.nvrtcDestroyProgram(program))
    return bytes(code)


def _check(error, *results):
    """Results of a call into NVRTC or the driver, which must have gone well."""
    if error:
        raise BuildError(f"{type(error).__name__}: {error.name}")
    return results[0] if len(results) == 1 else results


@functools.cache
def _context(device_index: int):
    """The context that PyTorch works in on a GPU, the primary one, made if nothing has yet."""
    from cuda.bindings import driver

    return _check(*driver.cuDevicePrimaryCtxRetain(_check(*driver.cuDeviceGet(device_index))))


def _enter_context(device_index: int) -> None:
    """Make the context current in this thread; a fresh one, such as that of the backward pass, may have none."""
    from cuda.bindings import driver

    _check(*driver.cuCtxSetCurrent(_context(device_index)))


@functools.cache
def _load(configuration: Configuration, device_index: int):
    """The kernels, loaded into the current context, that of the GPU."""
    from cuda.bindings import driver

    architecture = _architecture(device_index, _check(*_nvrtc().nvrtcGetSupportedArchs()))
    return _check(*driver.cuModuleLoadData(compiled_kernels(configuration, architecture).read_bytes()))


def _architecture(device_index: int, supported: list[int]) -> str:
    major, minor = torch.cuda.get_device_capability(device_index)
    capability = 10 * major + minor
    return f"sm_{capability}" if capability in supported else f"compute_{max(supported)}"


@functools.cache
def _function(configuration: Configuration, device_index: int, name: str):
    from cuda.bindings import driver

    return _check(*driver.cuModuleGetFunction(_load(configuration, device_index), name.encode()))


def _aligned(tensor: torch.Tensor) -> torch.Tensor:
    """Contiguous, and where wide loads may start."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % _BYTES_PER_LOAD == 0 else tensor.clone()


def _inputs(value, samples, weights, reference_points, offset_scale) -> dict[str, torch.Tensor]:
    """The tensors by name: value as it is, the others in the type that is computed in."""
    tensors = {"samples": samples, "weights": weights}
    if reference_points is not None:
        tensors |= {"reference_points": reference_points, "offset_scale": offset_scale}
    dtype = torch.promote_types(value.dtype, torch.float32)
    return {"value": _aligned(value)} | {name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}


def _run(kernel: str, shapes: list[int], inputs: dict[str, torch.Tensor], outputs: dict[str, torch.Tensor]) -> None:
    value, weights = inputs["value"], inputs["weights"]
    if not (weights.numel() and value.shape[3]):
        for output in outputs.values():
            output.zero_()
        return
    batch_size, num_queries, num_heads, num_levels, num_points = weights.shape
    fused = "reference_points" in inputs
    configuration = Configuration(value.dtype, num_heads, value.shape[3], num_levels, num_points, fused)
    problem = _Problem(
        **{name: tensor.data_ptr() for name, tensor in (inputs | outputs).items()},
        num_slices=batch_size * num_heads,
        num_cells=value.shape[1],
        num_queries=num_queries,
    )
    if kernel == "backward_value_in_order":  # a warp for each level of a slice
        num_blocks = math.ceil(problem.num_slices * num_levels / (_THREADS // _WARP))
    else:
        num_blocks = problem.num_slices * math.ceil(num_queries / configuration.queries_per_block)
    levels = (ctypes.c_int * len(shapes))(*shapes)
    _launch(configuration, kernel, num_blocks, problem, levels, value.device)


def _launch(configuration, kernel: str, num_blocks: int, problem: _Problem, levels: ctypes.Array, device) -> None:
    """Start a kernel on the current stream of the device.

    Nothing is copied or waited for: arguments are handed over by value, so that a CUDA graph may hold the launch.
    """
    from cuda.bindings import driver

    with torch.cuda.device(device):
        device_index = torch.cuda.current_device()
        _enter_context(device_index)
        function = _function(configuration, device_index, kernel)
        addresses = (ctypes.c_void_p * 2)(ctypes.addressof(problem), ctypes.addressof(levels))
        stream = torch.cuda.current_stream().cuda_stream
        grid_and_block = (num_blocks, 1, 1, _THREADS, 1, 1)
        _check(*driver.cuLaunchKernel(function, *grid_and_block, 0, stream, ctypes.addressof(addresses), 0))
