"""Which implementation runs, and the operators as they are called from outside."""

import contextlib
import functools
import logging
import os

import torch

from . import cpu, cuda, ops, pixels
from .ops import Shapes
from .ops import check_inputs as check_inputs  # Which callers find here.


logger = logging.getLogger(__name__)

# By the type of device whose tensors they take.
_COMPILED = {"cpu": cpu, "cuda": cuda}
_NAMES = ("auto", "torch", *_COMPILED)
_VARIABLE = "CLASSQUERY_KERNELS"

_override: str | None = None


def implementations() -> dict[str, str]:
    """Name of each implementation and where it runs, or why it does not; compiles what can be compiled."""
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    descriptions = {"torch": f"plain PyTorch {torch.__version__}, on any device; here: {' and '.join(devices)}"}
    for name, implementation in _COMPILED.items():
        reason = implementation.unavailable()
        descriptions[name] = f"compiled for {name} tensors" if reason is None else f"not available: {reason}"
    return descriptions


@contextlib.contextmanager
def use_implementation(name: str):
    """Within the context, run this implementation or fail: "torch", "cpu" or "cuda"; "auto" is the usual choice.

    Outside of any context the environment variable `CLASSQUERY_KERNELS` may hold one of these names. What has been
    traced by `torch.compile` keeps the implementation that it was traced with.
    """
    global _override
    previous, _override = _override, _checked_name(name, "use_implementation")
    try:
        yield
    finally:
        _override = previous


@torch.compiler.assume_constant_result
def chosen(device_type: str) -> str:
    """Name of the implementation for tensors on a type of device, compiled if it was not yet.

    Programs for `torch.export` and ONNX have to run without this package: for them it is always plain PyTorch.

    Raises:
        RuntimeError: If another implementation was asked for by name than can run.
    """
    wanted = _override or _checked_name(os.environ.get(_VARIABLE) or "auto", _VARIABLE)
    if wanted == "torch" or torch.compiler.is_exporting():
        return "torch"
    if wanted == "auto":
        return _fastest(device_type)
    if wanted != device_type:
        raise RuntimeError(f"implementation {wanted!r} was asked for, but the tensors are on {device_type}")
    if reason := _COMPILED[wanted].unavailable():
        raise RuntimeError(f"implementation {wanted!r} was asked for, but is not available: {reason}")
    return wanted


def _fastest(device_type: str) -> str:
    if device_type not in _COMPILED:
        return "torch"
    reason = _COMPILED[device_type].unavailable()
    if reason is not None:
        _warn_once(f"Deformable attention on {device_type}", reason)
        return "torch"
    return device_type


def shifts_hsv(frames: torch.Tensor) -> bool:
    """Whether `pixels.shift_hsv` can and should be used for these frames; compiles it if it was not yet."""
    wanted = _override or _checked_name(os.environ.get(_VARIABLE) or "auto", _VARIABLE)
    if wanted == "torch" or frames.device.type != "cpu" or frames.dtype != torch.uint8:
        return False
    reason = pixels.unavailable()
    if reason is not None:
        _warn_once("The change of colours", reason)
    return reason is None


@functools.cache
def _warn_once(what: str, reason: str) -> None:
    logger.warning("%s runs in plain PyTorch, which is slower: %s", what, reason)


def _checked_name(name: str, origin: str) -> str:
    if name not in _NAMES:
        raise ValueError(f"{origin} must be one of {', '.join(_NAMES)}, got {name!r}")
    return name


def deformable_attention_3d(
    value: torch.Tensor,
    spatio_temporal_shapes: Shapes,
    reference_points: torch.Tensor,
    sampling_offsets: torch.Tensor,
    attention_logits: torch.Tensor,
    offset_scale: torch.Tensor,
) -> torch.Tensor:
    """Compute what `deformable_attention_3d` of `classquery.ops_classquery` does, from the same tensors.

    Neither locations nor softmax weights are ever written to memory, and only the arguments are kept for the gradient.
    float16 and bfloat16 are summed in float32.

    Raises:
        TypeError, ValueError: If the tensors do not fit each other.
    """
    return ops.deformable_attention_3d(
        value, _flat(spatio_temporal_shapes), sampling_offsets, attention_logits, reference_points, offset_scale
    )


def ms_deform_attn_3d(
    value: torch.Tensor,
    spatio_temporal_shapes: Shapes,
    sampling_locations: torch.Tensor,
    attention_weights: torch.Tensor,
) -> torch.Tensor:
    """Compute what `ms_deform_attn_3d` of `classquery.ops_classquery` does, from the same tensors.

    Raises:
        TypeError, ValueError: If the tensors do not fit each other.
    """
    return ops.deformable_attention_3d(
        value, _flat(spatio_temporal_shapes), sampling_locations, attention_weights, None, None
    )


def _flat(shapes: Shapes) -> list[int]:
    return [size for shape in shapes for size in shape]
