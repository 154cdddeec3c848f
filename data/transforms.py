"""Augmentation of a clip and its boxes together, on uint8 frames, one draw for all frames."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from classquery import kernels
from classquery.data.hints import closest


# Principal axes (columns) and spreads of the colours of ImageNet in [0, 1] RGB, as in the published recipes.
_COLOR_AXES = torch.tensor([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
_COLOR_SPREADS = torch.tensor([0.225, 0.224, 0.229])


@dataclass(frozen=True)
class ClipTransform:
    """Random training transform: resize, crop of the same aspect, flip and change of colours.

    Args:
        resize_shortest_edge: Short side in pixels after resizing.
        crop_shortest_edge: Short side in pixels of the crop, at most that of the frame. The crop has the aspect of the
            frame and a uniformly random position; equal to `resize_shortest_edge`, it is the whole frame.
        flip_probability: Probability in [0, 1] of a horizontal flip. Leave it at 0 where labels tell left from right.
        max_resize_shortest_edge: If given, the short side after resizing is uniformly random in whole pixels between
            `resize_shortest_edge` and this.
        hue_jitter: Largest turn of the hue in degrees, either way, up to 180; the published recipes have 20.
        saturation_jitter: Largest change of the saturation, up or down, in [0, 1] of its range; published: 0.5 for
            UCF101-24 and JHMDB-21, 0.4 for AVA.
        value_jitter: The same for the value, the brightest channel.
        color_noise: Standard deviation of a shift of all colours along their principal axes, in units of their
            spreads; published: 0.1, but practically off by mistake, for it is added to pixels in [0, 255].
        mirrored_labels: What each class is in a mirrored clip, see `mirrored_labels`; nothing where all stay.
    """

    resize_shortest_edge: int
    crop_shortest_edge: int
    flip_probability: float = 0.5
    max_resize_shortest_edge: int | None = None
    hue_jitter: float = 0.0
    saturation_jitter: float = 0.0
    value_jitter: float = 0.0
    color_noise: float = 0.0
    mirrored_labels: tuple[int, ...] = ()

    def __post_init__(self):
        if not 0 < self.crop_shortest_edge <= self.resize_shortest_edge:
            raise ValueError(
                "`crop_shortest_edge` must be positive and at most `resize_shortest_edge`, got "
                f"{self.crop_shortest_edge} and {self.resize_shortest_edge}"
            )
        if self.max_resize_shortest_edge is not None and self.max_resize_shortest_edge < self.resize_shortest_edge:
            raise ValueError(
                "`max_resize_shortest_edge` must be at least `resize_shortest_edge`, got "
                f"{self.max_resize_shortest_edge} and {self.resize_shortest_edge}"
            )
        limits = {"flip_probability": 1, "hue_jitter": 180, "saturation_jitter": 1, "value_jitter": 1}
        for name, limit in (limits | {"color_noise": math.inf}).items():
            if not 0 <= getattr(self, name) <= limit:
                raise ValueError(f"`{name}` must be in [0, {limit}], got {getattr(self, name)}")

    def __call__(
        self, frames: torch.Tensor, boxes: torch.Tensor, generator: torch.Generator | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Transform a clip.

        Args:
            frames: Shape (num_frames, 3, height, width), uint8 RGB.
            boxes: Shape (..., 4), (x_min, y_min, x_max, y_max) in [0, 1] of the frame.
            generator: Source of the random draws; what is off draws nothing.

        Returns:
            Frames of the crop's size, boxes in [0, 1] of the crop, clipped to it, and a mask (...) that is false where
            nothing is left of a box.
        """
        return self.with_mirroring(frames, boxes, generator)[:3]

    def with_mirroring(
        self, frames: torch.Tensor, boxes: torch.Tensor, generator: torch.Generator | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, bool]:
        """Transform a clip, and say whether it is mirrored, too."""
        frames = resize_shortest_edge(frames, self._draw_shortest_edge(generator))
        frames, boxes = random_crop(frames, boxes, self.crop_shortest_edge, generator)
        is_mirrored = bool(torch.rand((), generator=generator) < self.flip_probability)
        if is_mirrored:
            frames, boxes = flip_horizontally(frames, boxes)
        return self._recolor(frames, generator), boxes, (boxes[..., 2:] > boxes[..., :2]).all(-1), is_mirrored

    def _draw_shortest_edge(self, generator: torch.Generator | None) -> int:
        if self.max_resize_shortest_edge is None:
            return self.resize_shortest_edge
        stop = self.max_resize_shortest_edge + 1
        return int(torch.randint(self.resize_shortest_edge, stop, (), generator=generator))

    def _recolor(self, frames: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        limits = torch.tensor([self.hue_jitter, self.saturation_jitter, self.value_jitter])
        if limits.any():
            frames = shift_hsv(frames, *((2 * torch.rand(3, generator=generator) - 1) * limits).tolist())
        if self.color_noise:
            steps = self.color_noise * torch.randn(3, generator=generator)
            frames = shift_rgb(frames, _COLOR_AXES @ (_COLOR_SPREADS * steps))
        return frames


def mirrored_labels(pairs: Sequence[str], id2label: Mapping[int, str]) -> tuple[int, ...]:
    """Return what each class is in a mirrored clip, by id; nothing if there are no pairs.

    Args:
        pairs: Two classes each that mirroring turns into each other: "kite on the left:kite on the right".
        id2label: Names of the classes, by 0-based id.

    Raises:
        ValueError: If a pair is not of two classes that there are, or a class is in two pairs.
    """
    label2id = {name: int(label) for label, name in id2label.items()}
    labels = list(range(len(label2id)))
    for pair in pairs:
        # The names may have colons.
        cuts = [(pair[:at].strip(), pair[at + 1 :].strip()) for at, sign in enumerate(pair) if sign == ":"]
        known = [cut for cut in cuts if set(cut) <= label2id.keys() and cut[0] != cut[1]]
        if len(known) != 1:
            unknown = next((name for cut in cuts for name in cut if name not in label2id), pair)
            raise ValueError(
                f"--flip_pairs must be two classes with a colon between them, got {pair!r}{closest(unknown, label2id)}"
            )
        first, second = (label2id[name] for name in known[0])
        if labels[first] != first or labels[second] != second:
            raise ValueError(f"--flip_pairs has a class in two pairs, see {pair!r}")
        labels[first], labels[second] = second, first
    return tuple(labels) if pairs else ()


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


def shift_hsv(frames: torch.Tensor, hue: float, saturation: float, value: float) -> torch.Tensor:
    """Turn the hue and shift the saturation and the value of all pixels; grey ones have no hue and stay grey.

    Args:
        frames: Shape (num_frames, 3, height, width), uint8 RGB.
        hue: Degrees in [-180, 180], from red towards green.
        saturation: In [-1, 1], added to the saturation, which is then clipped to [0, 1].
        value: The same for the value, the brightest channel.

    Compiled (`classquery.kernels`), it takes a tenth of the time and rounds a few in ten thousand levels otherwise.
    """
    if kernels.shifts_hsv(frames):
        return kernels.pixels.shift_hsv(frames, hue, saturation, value)
    # A frame at a time, what is computed of it stays in the cache.
    return torch.stack([_shift_hsv_of_frame(frame, hue, saturation, value) for frame in frames])


def _shift_hsv_of_frame(frame: torch.Tensor, hue: float, saturation: float, value: float) -> torch.Tensor:
    """Shift one frame (3, height, width), in [0, 255], without `where` and `%`, which are ten times slower."""
    red, green, blue = torch.empty(frame.shape).copy_(frame)
    brightest = torch.maximum(torch.maximum(red, green), blue)
    chroma = brightest - torch.minimum(torch.minimum(red, green), blue)
    # 1 where the channel is the brightest and 0 elsewhere, because colours are whole numbers.
    is_red, is_green = (1 + (channel - brightest).clamp_(min=-1) for channel in (red, green))
    divisor = chroma.clamp(min=1)
    # The hue in sextants: 0 is red, 2 green, 4 blue.
    sextant = torch.lerp((red - green) / divisor + 4, (blue - red) / divisor + 2, is_green)
    sextant = torch.lerp(sextant, (green - blue) / divisor, is_red)
    sextant = 6 * (sextant / 6 + (1 + hue / 360)).frac_()
    new_value = (brightest + 255 * value).clamp_(0, 255)
    new_saturation = (chroma / brightest.clamp(min=1) + saturation).clamp_(0, 1) * chroma.clamp(max=1)
    new_chroma = new_value * new_saturation
    # Up to one sextant from its own hue a channel has the value, from two sextants on it lies below by the chroma.
    distances = 2 - (sextant - 3).abs_(), (sextant - 2).abs_() - 1, (sextant - 4).abs_() - 1
    shifted = torch.empty(frame.shape, dtype=torch.uint8)
    for channel, distance in zip(shifted, distances, strict=True):
        # The conversion to uint8 truncates: with half a level more, it rounds.
        channel.copy_(torch.addcmul(new_value + 0.5, new_chroma, distance.clamp_(0, 1), value=-1))
    return shifted


def shift_rgb(frames: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Add `shift` (3,), where 1 is the range of a channel, to frames (..., 3, height, width), uint8, and clip them."""
    levels = (255 * shift).round().to(torch.int16)[:, None, None]
    return frames.contiguous().to(torch.int16).add_(levels).clamp_(0, 255).to(torch.uint8)
