"""What is done to the pixels of clips, compiled for the CPU; plain PyTorch in `classquery.data.transforms` is the form
that it is measured against, and what runs without a compiler."""

import ctypes
import functools

import torch

from .build import load_library, why_not_loaded


class _Frames(ctypes.Structure):
    """Mirrors `Frames` in pixels.cpp."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("input", "output")),
        *((name, ctypes.c_int64) for name in ("num_frames", "height", "width")),
        *((f"{name}_stride", ctypes.c_int64) for name in ("frame", "channel", "row", "column")),
        *((name, ctypes.c_float) for name in ("hue", "saturation", "value")),
    ]


_library = functools.partial(load_library, "pixels.cpp")
unavailable = functools.partial(why_not_loaded, "pixels.cpp")


def shift_hsv(frames: torch.Tensor, hue: float, saturation: float, value: float) -> torch.Tensor:
    """Turn the hue and shift the saturation and the value of frames.

    Args:
        frames: Shape (num_frames, 3, height, width), uint8 RGB on the CPU, in any layout.
        hue: In degrees, from red towards green.
        saturation: In [-1, 1], added to the saturation.
        value: In [-1, 1], added to the value.

    Returns:
        Contiguous frames of the same shape.
    """
    num_frames, _, height, width = frames.shape
    output = torch.empty(frames.shape, dtype=torch.uint8)
    # What is added to the hue is positive, like the hue then.
    shifts = {"hue": 1 + hue / 360, "saturation": saturation, "value": 255 * value}
    axes = "frame", "channel", "row", "column"
    strides = {f"{axis}_stride": stride for axis, stride in zip(axes, frames.stride(), strict=True)}
    sizes = {"num_frames": num_frames, "height": height, "width": width}
    _library().shift_hsv(
        ctypes.byref(_Frames(input=frames.data_ptr(), output=output.data_ptr(), **sizes, **strides, **shifts))
    )
    return output
