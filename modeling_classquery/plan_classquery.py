"""What the network knows of a clip from its size alone, before it looks at it.

In the words used here, a level of features has *cells* (t, h, w), whose first coordinate is a time *slot*. All cells
of all levels stand one after the other, each at its *index*. A *point* is where a cell lies, as (x, y, t) in [0, 1],
and an *encoding* tells attention so. The *read* cells are those that the decoded frames are resampled from: of a
keyframe, few. Counts begin with `num_`.

A plan is made on the device without waiting for it, but for the indices of the read cells, and kept for the next clips
of the size. With padding="released", what depends on a batch's padding is added to it, on the device.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F

from .configuration_classquery import ClassQueryConfig
from .resampling_classquery import AxisWeights, Shapes, axis_weights, is_transposed


class Padding(NamedTuple):
    """Where clips of different sizes are padded to one.

    Args:
        level_masks: One mask (batch, h, w) per level, true on real cells.
        level_sizes: Where padding="masked" made them, for each level the (h, w) of each clip.
    """

    level_masks: list[torch.Tensor]
    level_sizes: tuple[tuple[tuple[int, int], ...], ...] | None = None


@dataclass(frozen=True)
class ClipPlan:
    """What follows from sizes; the batch is 1 where all clips share it.

    Args:
        shapes: Size (t, h, w) of each level.
        num_frames: Frames of a clip.
        read_index: Index of each cell that the last encoder layer computes, (num_read_cells,); None for all of them.
        axis_weights: Of each level, the weights of its read cells in the resampled frames.
        is_transposed: Whether resampled rows come from columns.
        slot_index: The time slot whose encoding each decoded frame takes, (num_output_frames,).
        offset_scales: Length of an offset of one along (x, y, t) as part of each level, (num_levels, 3).
        reference_points: Point of each cell in every level, (batch, num_cells, num_levels, 3).
        encodings: Of each level, those of time, row and column, which broadcast to (batch, t, h, w, channels).
        level_masks: One mask (batch, h, w) per level, true on real cells; None if all are.
    """

    shapes: Shapes
    num_frames: int
    read_index: torch.Tensor | None
    axis_weights: list[AxisWeights]
    is_transposed: bool
    slot_index: torch.Tensor
    offset_scales: torch.Tensor
    reference_points: torch.Tensor
    encodings: list[tuple[torch.Tensor, ...]]
    level_masks: list[torch.Tensor] | None

    @classmethod
    def make(
        cls,
        config: ClassQueryConfig,
        shapes: Shapes,
        num_frames: int,
        device: torch.device,
        padding: Padding | None = None,
        every_cell: bool = False,
    ) -> "ClipPlan":
        """Plan for clips of a size.

        Args:
            config: How positions are encoded, offsets scaled and levels resampled.
            shapes: Size (t, h, w) of each level.
            num_frames: Frames of a clip.
            device: Where the features are.
            padding: That of the batch, None if no clip is padded.
            every_cell: Whether the last encoder layer computes all cells.
        """
        frames = torch.arange(num_frames, device=device)[config.output_frame_slice(num_frames)]
        num_slots = shapes[-2][0]
        masks = [_all_real(h, w, device) for _, h, w in shapes]
        if padding is not None and config.padding == "masked":
            masks = padding.level_masks
        weights, read_index = axis_weights(config, shapes, masks, num_frames), None
        # An exported program may serve other sizes as well.
        if config.output_frames == "keyframe" and not every_cell and not torch.compiler.is_exporting():
            read_index, weights = _restrict(weights, shapes, _read_cells(config, shapes, num_frames, padding))
        return cls(
            shapes=shapes,
            num_frames=num_frames,
            read_index=read_index,
            axis_weights=weights,
            is_transposed=is_transposed(config, shapes, num_frames),
            # The release tiles the slots in time, so that frame f reads slot f modulo their number.
            slot_index=frames % num_slots
            if config.resampled_position == "released"
            else frames * num_slots // num_frames,
            offset_scales=_offset_scales(config, shapes, device),
            **_of_unpadded(config, shapes, device) if padding is None else _of_padded(config, shapes, padding),
        )

    def padded(self, config: ClassQueryConfig, padding: Padding) -> "ClipPlan":
        """The plan for a batch of clips of which some are padded, up to what is resampled from where."""
        return replace(self, **_of_padded(config, self.shapes, padding))

    def cell_mask(self) -> torch.Tensor | None:
        """True on the real cells of all levels, (batch, num_cells); None if all are."""
        if self.level_masks is None:
            return None
        levels = zip(self.level_masks, self.shapes, strict=True)
        return torch.cat([mask[:, None].expand(-1, t, -1, -1).flatten(1) for mask, (t, _, _) in levels], dim=1)

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> "ClipPlan":
        """Move to another device, as Accelerate does between parts of a model on different ones."""

        def move(value):
            if isinstance(value, torch.Tensor):
                return value.to(device, non_blocking=non_blocking)
            if isinstance(value, AxisWeights):
                return AxisWeights(*map(move, value))
            return type(value)(map(move, value)) if isinstance(value, list | tuple) else value

        return ClipPlan(**{name: move(value) for name, value in vars(self).items()})


def _of_unpadded(config: ClassQueryConfig, shapes: Shapes, device: torch.device) -> dict:
    """Fields of a plan that padding changes, without any: then an encoding needs a line of each axis only."""
    encodings = []
    for t, h, w in shapes:
        in_time, _, _ = encode_positions(_all_real(1, 1, device), t, config)
        _, in_column, _ = encode_positions(_all_real(h, 1, device), 1, config)
        _, _, in_row = encode_positions(_all_real(1, w, device), 1, config)
        encodings.append((in_time, in_column, in_row))
    points = reference_points(shapes, torch.ones(1, len(shapes), 3, device=device))
    return {"reference_points": points, "encodings": encodings, "level_masks": None}


def _of_padded(config: ClassQueryConfig, shapes: Shapes, padding: Padding) -> dict:
    """The same with padding."""
    masks = padding.level_masks
    encodings = [encode_positions(mask, t, config) for mask, (t, _, _) in zip(masks, shapes, strict=True)]
    points = reference_points(shapes, valid_ratios(masks))
    return {"reference_points": points, "encodings": encodings, "level_masks": masks}


class ClipPlans:
    """The plans of the last sizes, so that their clips need none made."""

    most = 32

    def __init__(self):
        self._plans: dict[tuple, ClipPlan] = {}

    def find(
        self,
        config: ClassQueryConfig,
        shapes: Shapes,
        num_frames: int,
        features: torch.Tensor,
        padding: Padding | None = None,
        every_cell: bool = False,
    ) -> ClipPlan:
        """The plan as of `ClipPlan.make`, on the device of features."""
        if torch.compiler.is_compiling():
            return ClipPlan.make(config, shapes, num_frames, features.device, padding, every_cell)
        is_by_size = padding is None or padding.level_sizes is not None
        of_sizes = padding if is_by_size else None
        # Kinds of tensors that stand in for others, in traces and tests, do not mix.
        place = (type(features), features.device)
        sizes = (tuple(shapes), num_frames, None if of_sizes is None else of_sizes.level_sizes)
        key = (place, sizes, every_cell, _choices(config))
        # Put back as the last one, so that the first is that of the longest time ago.
        plan = self._plans.pop(key, None)
        if plan is None:
            # What is made in inference mode could not be used in training.
            with torch.inference_mode(False):
                if of_sizes is not None:
                    of_sizes = of_sizes._replace(level_masks=[mask.clone() for mask in of_sizes.level_masks])
                plan = ClipPlan.make(config, shapes, num_frames, features.device, of_sizes, every_cell)
        self._plans[key] = plan
        while len(self._plans) > self.most:
            self._plans.pop(next(iter(self._plans)), None)
        return plan if padding is None or is_by_size else plan.padded(config, padding)

    def __deepcopy__(self, memo) -> "ClipPlans":
        return ClipPlans()

    def __reduce__(self):
        return ClipPlans, ()


def _choices(config: ClassQueryConfig) -> tuple:
    """Values of the configuration that plans depend on."""
    names = ("output_frames", "padding", "resampling_grid", "resampled_position", "sampling_offset_order", "d_model")
    return tuple(getattr(config, name) for name in (*names, "sine_frequencies", "highest_sine_frequency"))


def _all_real(height: int, width: int, device: torch.device | str) -> torch.Tensor:
    return torch.ones(1, height, width, dtype=torch.bool, device=device)


# Read cells


class LevelCells(NamedTuple):
    """Cells of a level: all those at these time slots, rows and columns, which ascend."""

    slots: list[int]
    rows: list[int]
    columns: list[int]


def _read_cells(
    config: ClassQueryConfig, shapes: Shapes, num_frames: int, padding: Padding | None
) -> list[LevelCells]:
    if padding is None or padding.level_sizes is None:
        return read_cells(config, shapes, num_frames)
    return read_cells(config, shapes, num_frames, padding.level_sizes)


@torch.compiler.assume_constant_result
def read_cells(
    config: ClassQueryConfig,
    shapes: Shapes,
    num_frames: int,
    level_sizes: Sequence[Sequence[tuple[int, int]]] | None = None,
) -> list[LevelCells]:
    """Cells of each level with a weight for any decoded frame of any clip; needs no device.

    Args:
        config: How levels are resampled.
        shapes: Size (t, h, w) of each level.
        num_frames: Frames of a clip.
        level_sizes: Of each level the (h, w) of each clip; the whole level by default.
    """
    masks = [_all_real(h, w, "cpu") for _, h, w in shapes]
    if level_sizes is not None:
        masks = [mask.repeat(len(sizes), 1, 1) for mask, sizes in zip(masks, level_sizes, strict=True)]
        for mask, sizes in zip(masks, level_sizes, strict=True):
            for of_clip, (height, width) in zip(mask, sizes, strict=True):
                of_clip[height:] = of_clip[:, width:] = False
    weights = axis_weights(config, shapes, masks, num_frames)
    return [LevelCells(*(axis.flatten(0, 1).any(0).nonzero()[:, 0].tolist() for axis in level)) for level in weights]


def _restrict(
    weights: list[AxisWeights], shapes: Shapes, cells: list[LevelCells]
) -> tuple[torch.Tensor, list[AxisWeights]]:
    """Indices of cells among those of all levels, and the weights of these cells only."""
    device = weights[0].times.device
    lines = [line for level in cells for line in level]
    # In one copy to the device.
    lines = torch.tensor(sum(lines, []), device=device).split([len(line) for line in lines])
    restricted, indices, start = [], [], 0
    for level, (t, h, w), (slots, rows, columns) in zip(
        weights, shapes, zip(*[iter(lines)] * 3, strict=True), strict=True
    ):
        restricted.append(AxisWeights(level.times[..., slots], level.rows[..., rows], level.columns[..., columns]))
        indices.append((start + (slots[:, None, None] * h + rows[:, None]) * w + columns).flatten())
        start += t * h * w
    return torch.cat(indices), restricted


# Points


def valid_ratios(level_masks: list[torch.Tensor]) -> torch.Tensor:
    """Real part of each level along (x, y, t), read off its first row and column: (batch, levels, 3)."""
    ratios = [
        torch.stack((mask[:, 0].float().mean(-1), mask[:, :, 0].float().mean(-1)), dim=-1) for mask in level_masks
    ]
    # Every frame of a batch is real as far as the mask knows.
    return F.pad(torch.stack(ratios, dim=1), (0, 1), value=1.0)


def reference_points(shapes: Shapes, ratios: torch.Tensor) -> torch.Tensor:
    """Point of each cell in every level, from `valid_ratios`: (batch, num_cells, levels, 3)."""
    points = []
    for level, (t, h, w) in enumerate(shapes):
        axes = [(torch.arange(size, device=ratios.device) + 0.5) / size for size in (t, h, w)]
        centers = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], dim=-1).flatten(0, 2)
        points.append(centers / ratios[:, level, None])
    return torch.cat(points, dim=1)[:, :, None] * ratios[:, None]


def _offset_scales(config: ClassQueryConfig, shapes: Shapes, device: torch.device) -> torch.Tensor:
    # The release divides (x, y, t) by (t, w, h): its checkpoints have learned offsets of that scale.
    t, h, w = torch.tensor(shapes, dtype=torch.float32, device=device).unbind(1)
    return 1 / torch.stack((t, w, h) if config.sampling_offset_order == "released" else (w, h, t), dim=1)


# Encodings


def encode_positions(mask: torch.Tensor, num_slots: int, config: ClassQueryConfig) -> tuple[torch.Tensor, ...]:
    """Encode each cell among the real cells of its time line, column and row.

    Args:
        mask: Shape (batch, h, w), true on real cells.
        num_slots: Size of the level in time.
        config: Width, and the frequencies of the sines.

    Returns:
        Those of time (batch, num_slots, h, w, 2/8 of d_model), rows (batch, 1, h, w, 3/8) and columns (the same),
        float32.
    """
    valid = mask[:, None].float()
    eighth = config.d_model // 8
    lines = ((valid.expand(-1, num_slots, -1, -1), 1, 2 * eighth), (valid, 2, 3 * eighth), (valid, 3, 3 * eighth))
    encodings = []
    for cells, axis, width in lines:
        positions = cells.cumsum(axis)
        last = positions.narrow(axis, positions.shape[axis] - 1, 1)
        if config.sine_frequencies == "octaves":
            positions = positions - 0.5
        positions = positions / (last + 1e-6) * 2 * math.pi
        encodings.append(interleaved_sine(positions, sine_periods(width, config, mask.device)))
    return tuple(encodings)


def sine_periods(width: int, config: ClassQueryConfig, device: torch.device) -> torch.Tensor:
    """Periods of the channels of an encoding, as parts of the frame: (width,)."""
    channels = torch.arange(width, device=device)
    if config.sine_frequencies == "octaves":
        num_pairs = max(width // 2 - 1, 1)
        return 2 * (2 * config.highest_sine_frequency) ** -(channels // 2 / num_pairs)
    # The release steps the exponent at every channel; usually the sine and the cosine of a pair share it.
    is_released = config.sine_frequencies == "released"
    return 10000 ** (channels / width if is_released else 2 * (channels // 2) / width)


def interleaved_sine(positions: torch.Tensor, periods: torch.Tensor) -> torch.Tensor:
    """Sine at even and cosine at odd channels: (...) -> (..., len(periods))."""
    angles = positions[..., None] / periods
    return torch.stack((angles[..., 0::2].sin(), angles[..., 1::2].cos()), dim=-1).flatten(-2)


def join_encodings(parts: Sequence[torch.Tensor], shape: tuple[int, int, int]) -> torch.Tensor:
    """Join those of time, row and column of a level: (batch, t, h, w, d_model)."""
    return torch.cat([part.expand(-1, *shape, -1) for part in parts], dim=-1)


__all__ = [
    "ClipPlan",
    "ClipPlans",
    "LevelCells",
    "Padding",
    "encode_positions",
    "interleaved_sine",
    "join_encodings",
    "reference_points",
    "sine_periods",
    "valid_ratios",
]
