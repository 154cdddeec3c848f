"""3-D deformable attention by a kernel with a thread per channel, to compare with; see im2col.cu."""

import ctypes
import functools
import math
from pathlib import Path

import torch

from classquery.kernels.cuda import compile_source


SOURCE = Path(__file__).with_suffix(".cu")
THREADS = 256
_POINTERS = (
    *("value", "locations", "weights", "grad_output"),
    *("output", "grad_value", "grad_locations", "grad_weights", "shapes"),
)
_SIZES = ("num_cells", "num_queries", "num_heads", "head_dim", "num_levels", "num_points")


class Problem(ctypes.Structure):
    """Mirrors `Problem` in im2col.cu."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in _POINTERS),
        ("count", ctypes.c_longlong),
        *((name, ctypes.c_int) for name in _SIZES),
    ]

    @classmethod
    def of(cls, value: torch.Tensor, weights: torch.Tensor, **tensors: torch.Tensor) -> "Problem":
        """With the sizes that the tensors have."""
        batch_size, num_queries, num_heads, num_levels, num_points = weights.shape
        num_cells, head_dim = value.shape[1], value.shape[3]
        addresses = {name: tensor.data_ptr() for name, tensor in tensors.items()}
        sizes = (num_cells, num_queries, num_heads, head_dim, num_levels, num_points)
        return cls(
            value=value.data_ptr(),
            weights=weights.data_ptr(),
            **addresses,
            count=batch_size * num_queries * num_heads * head_dim,
            **dict(zip(_SIZES, sizes, strict=True)),
        )


class Im2col(torch.autograd.Function):
    """Sums of values sampled at locations (batch, queries, heads, levels, points, 3); all contiguous and float32."""

    @staticmethod
    def forward(ctx, value, shapes, locations, weights):
        output = value.new_empty(*weights.shape[:2], value.shape[2] * value.shape[3])
        tensors = {"locations": locations, "shapes": shapes, "output": output}
        launch("im2col_forward", Problem.of(value, weights, **tensors))
        ctx.save_for_backward(value, shapes, locations, weights)
        return output

    @staticmethod
    def backward(ctx, grad_output):
        value, shapes, locations, weights = ctx.saved_tensors
        inputs = {"locations": locations, "shapes": shapes, "grad_output": grad_output.contiguous()}
        named = {"value": value, "locations": locations, "weights": weights}
        gradients = {f"grad_{name}": torch.zeros_like(tensor) for name, tensor in named.items()}
        launch("im2col_backward", Problem.of(value, weights, **inputs, **gradients))
        return gradients["grad_value"], None, gradients["grad_locations"], gradients["grad_weights"]


def attend(value, shapes, references, offsets, logits, scale) -> torch.Tensor:
    """Deformable attention with locations and weights in memory; arguments as in the operator."""
    locations = (references[:, :, None, :, None] + offsets * scale[:, None]).contiguous()
    weights = logits.flatten(3).softmax(-1).view(logits.shape)
    return Im2col.apply(value, _on_device(tuple(shapes), value.device), locations, weights)


@functools.cache
def _on_device(shapes: tuple[tuple[int, int, int], ...], device: torch.device) -> torch.Tensor:
    # Copied once: to copy waits for the GPU.
    return torch.tensor(shapes, dtype=torch.int32, device=device)


def compile_kernels(architecture: str) -> bytes:
    """Machine code for a GPU such as "sm_90"."""
    return compile_source(SOURCE, [f"--gpu-architecture={architecture}", "--std=c++17", f"-DTHREADS={THREADS}"])


def launch(kernel: str, problem: Problem) -> None:
    """Start a kernel on the current stream."""
    from cuda.bindings import driver

    arguments = (ctypes.c_void_p * 1)(ctypes.addressof(problem))
    grid_and_block = (math.ceil(problem.count / THREADS), 1, 1, THREADS, 1, 1)
    stream = torch.cuda.current_stream().cuda_stream
    _check(*driver.cuLaunchKernel(_function(kernel), *grid_and_block, 0, stream, ctypes.addressof(arguments), 0))


@functools.cache
def _function(kernel: str):
    from cuda.bindings import driver

    return _check(*driver.cuModuleGetFunction(_module(), kernel.encode()))


@functools.cache
def _module():
    from cuda.bindings import driver

    torch.cuda.synchronize()
    major, minor = torch.cuda.get_device_capability()
    return _check(*driver.cuModuleLoadData(compile_kernels(f"sm_{major}{minor}")))


def _check(error, *results):
    if error:
        raise RuntimeError(f"{type(error).__name__}: {error.name}")
    return results[0] if results else None
