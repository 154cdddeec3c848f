"""What a program is exported for; importable without torch."""

from dataclasses import dataclass
from typing import Literal


# What `--dynamic` leaves open: axes of `pixel_values` and of `pixel_mask`.
AXES = {"batch": ((0,), (0,)), "size": ((3, 4), (1, 2))}
# The first with a GridSample in three dimensions, and the first that the conversion writes.
OPSET_OF_GRID_SAMPLE, _LOWEST_OPSET = 20, 18


class ExportError(ValueError):
    """Raised when a detector cannot be exported, or the program does not compute what the model does."""


@dataclass(frozen=True)
class ExportOptions:
    """What the program is made for.

    Raises:
        ExportError: If a value is out of range or does not go with another.
    """

    batch_size: int = 1
    """Clips of a call; with a dynamic batch, any number."""
    height: int | None = None
    """Of the frames, in pixels; by default the short side of the processor. With a dynamic size, any."""
    width: int | None = None
    """Of the frames; by default 4/3 of the height."""
    dynamic: tuple[str, ...] = ("batch", "size")
    """What is left open: "batch" and "size"."""
    sampling: Literal["gather", "grid_sample"] | None = None
    """How features are read between cells: "gather" spells the interpolation out, so that no runtime needs a
    GridSample in three dimensions. By default "gather" for ONNX, where it is the quicker one too, and "grid_sample"
    for torch."""
    opset: int = OPSET_OF_GRID_SAMPLE
    """Of ONNX."""
    tolerance: float = 1e-4
    """How far any output may be from the model's: this much, or this part of it."""

    def __post_init__(self):
        for name in ("batch_size", "height", "width"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ExportError(f"{name} must be positive, got {value}")
        if unknown := set(self.dynamic) - set(AXES):
            raise ExportError(f"dynamic must be some of {', '.join(AXES)}, got {', '.join(sorted(unknown))}")
        if self.opset < _LOWEST_OPSET:
            raise ExportError(f"opset must be at least {_LOWEST_OPSET}, got {self.opset}")
        if self.sampling == "grid_sample" and self.opset < OPSET_OF_GRID_SAMPLE:
            raise ExportError(
                f"ONNX samples in three dimensions from opset {OPSET_OF_GRID_SAMPLE} on, got {self.opset}: "
                "choose that one, or sampling 'gather'"
            )
        if not self.tolerance > 0:
            raise ExportError(f"tolerance must be positive, got {self.tolerance}")
