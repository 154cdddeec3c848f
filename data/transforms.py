"""Augmentation of a clip and its boxes together, on uint8 frames, one draw for all frames."""

from dataclasses import dataclass

import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F


@dataclass(frozen=True)
class ClipTransform:
    """Random training transform: resize, crop of the same aspect, and flip.

    Args:
        resize_shortest_edge: Short side in pixels after resizing.
        crop_shortest_edge: Short side in pixels of the crop, at most that of the frame. The crop has the aspect of the
            frame and a uniformly random position; equal to `resize_shortest_edge`, it is the whole frame.
        flip_probability: Probability in [0, 1] of a horizontal flip. Leave it at 0 where labels tell left from right.
    """

    resize_shortest_edge: int
    crop_shortest_edge: int
    flip_probability: float = 0.5

    def __post_init__(self):
        if not 0 < self.crop_shortest_edge <= self.resize_shortest_edge:
            raise ValueError(
                "`crop_shortest_edge` must be positive and at most `resize_shortest_edge`, got "
                f"{self.crop_shortest_edge} and {self.resize_shortest_edge}"
            )

    def __call__(
        self, frames: torch.Tensor, boxes: torch.Tensor, generator: torch.Generator | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Transform a clip.

        Args:
            frames: Shape (num_frames, 3, height, width), uint8.
            boxes: Shape (..., 4), (x_min, y_min, x_max, y_max) in [0, 1] of the frame.
            generator: Source of the random draws.

        Returns:
            Frames of the crop's size, boxes in [0, 1] of the crop, clipped to it, and a mask (...) that is false where
            nothing is left of a box.
        """
        frames = resize_shortest_edge(frames, self.resize_shortest_edge)
        frames, boxes = random_crop(frames, boxes, self.crop_shortest_edge, generator)
        if torch.rand((), generator=generator) < self.flip_probability:
            frames, boxes = flip_horizontally(frames, boxes)
        return frames, boxes, (boxes[..., 2:] > boxes[..., :2]).all(-1)


def resize_shortest_edge(frames: torch.Tensor, size: int) -> torch.Tensor:
    """Resize frames (..., height, width), uint8, so that the short side is `size` pixels; bicubic with antialias.

    The long side is truncated to whole pixels, as by the video processor.
    """
    height, width = frames.shape[-2:]
    shortest = min(height, width)
    size = [size * height // shortest, size * width // shortest]
    return F.resize(frames, size, interpolation=InterpolationMode.BICUBIC, antialias=True)


def random_crop(
    frames: torch.Tensor, boxes: torch.Tensor, size: int, generator: torch.Generator | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut a window with the aspect of the frames and a short side of `size` pixels, and clip the boxes to it."""
    height, width = frames.shape[-2:]
    shortest = min(height, width)
    crop_height, crop_width = size * height // shortest, size * width // shortest
    top, left = (
        int(torch.randint(full - part + 1, (), generator=generator))
        for full, part in ((height, crop_height), (width, crop_width))
    )
    frames = frames[..., top : top + crop_height, left : left + crop_width]
    offset = boxes.new_tensor([left, top, left, top])
    boxes = boxes * boxes.new_tensor([width, height, width, height]) - offset
    return frames, (boxes / boxes.new_tensor([crop_width, crop_height, crop_width, crop_height])).clamp(0, 1)


def flip_horizontally(frames: torch.Tensor, boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mirror frames (..., width) and boxes (..., 4) in [0, 1]."""
    x_min, y_min, x_max, y_max = boxes.unbind(-1)
    return frames.flip(-1), torch.stack((1 - x_max, y_min, 1 - x_min, y_max), dim=-1)
