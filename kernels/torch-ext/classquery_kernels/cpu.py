"""The C++ implementation for the CPU, called through its C interface.

It depends on no C++ interface of PyTorch and so on none of its versions: it is given addresses, and runs in PyTorch's
own threads through a function of the C interface that PyTorch keeps stable.
"""

import ctypes
import functools
import math

import torch

from .build import load_library, why_not_loaded


_POINTERS = (
    *("value", "shapes", "samples", "weights", "reference_points", "offset_scale", "grad_output"),
    *("output", "grad_value", "grad_samples", "grad_weights", "packed"),
)
_SIZES = (
    *("batch_size", "num_cells", "num_heads", "head_dim", "num_queries", "num_levels", "num_points"),
    *("num_packed", "num_threads"),
)
_BYTES_PER_VECTOR = 32


class _Problem(ctypes.Structure):
    """Mirrors `Problem` in deformable_attention.cpp."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_int64) for name in _SIZES),
        ("parallel_for", ctypes.c_void_p),
    ]


_library = functools.partial(load_library, "deformable_attention.cpp")
unavailable = functools.partial(why_not_loaded, "deformable_attention.cpp")


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
    output = inputs["value"].new_empty(*samples.shape[:2], value.shape[2] * value.shape[3])
    _run("forward", shapes, inputs, {"output": output})
    return output.to(value.dtype)


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
    """Gradients by `value`, by the sampling locations and by `weights`; empty where not asked for."""
    inputs = _inputs(value, samples, weights, reference_points, offset_scale)
    inputs["grad_output"] = grad_output.to(inputs["value"].dtype).contiguous()
    needed = {"value": needs_value, "samples": needs_samples, "weights": needs_samples}
    outputs = {f"grad_{name}": torch.empty_like(inputs[name]) for name in needed if needed[name]}
    _run("backward", shapes, inputs, outputs)
    return (
        outputs.get("grad_value", value.new_empty(0)).to(value.dtype),
        outputs.get("grad_samples", inputs["samples"].new_empty(0)),
        outputs.get("grad_weights", inputs["weights"].new_empty(0)),
    )


@functools.cache
def _parallel_for() -> int:
    """Address of PyTorch's stable `torch_parallel_for`."""
    return ctypes.cast(ctypes.CDLL(torch._C.__file__).torch_parallel_for, ctypes.c_void_p).value


def _inputs(value, samples, weights, reference_points, offset_scale) -> dict[str, torch.Tensor]:
    """The tensors by name, contiguous and of the type that is computed in."""
    tensors = {"value": value, "samples": samples, "weights": weights}
    if reference_points is not None:
        tensors |= {"reference_points": reference_points, "offset_scale": offset_scale}
    dtype = torch.promote_types(value.dtype, torch.float32)
    return {name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}


def _run(function: str, shapes: list[int], inputs: dict[str, torch.Tensor], outputs: dict[str, torch.Tensor]) -> None:
    value, weights = inputs["value"], inputs["weights"]
    if not (weights.numel() and value.shape[3]):
        for output in outputs.values():
            output.zero_()
        return
    batch_size, num_queries, num_heads, num_levels, num_points = weights.shape
    num_threads = torch.get_num_threads()
    num_packed = min(num_threads, batch_size * num_heads)
    padded_bytes = math.ceil(value.shape[3] * value.element_size() / _BYTES_PER_VECTOR) * _BYTES_PER_VECTOR
    scratch = {
        "shapes": value.new_tensor(shapes, dtype=torch.int64),
        "packed": value.new_empty(num_packed, value.shape[1] + num_levels, padded_bytes, dtype=torch.uint8),
    }
    problem = _Problem(
        **{name: tensor.data_ptr() for name, tensor in (inputs | outputs | scratch).items()},
        batch_size=batch_size,
        num_cells=value.shape[1],
        num_heads=num_heads,
        head_dim=value.shape[3],
        num_queries=num_queries,
        num_levels=num_levels,
        num_points=num_points,
        num_packed=num_packed,
        num_threads=num_threads,
        parallel_for=_parallel_for(),
    )
    precision = "double" if value.dtype == torch.float64 else "float"
    if getattr(_library(), f"{function}_{precision}")(ctypes.byref(problem)):
        raise MemoryError("deformable attention ran out of memory")
