"""Bring the levels of the encoder to one size and to the decoded frames.

Every level is interpolated linearly along time, rows and columns, one axis after the other:

    resampled[f, y, x] = sum_t times[f, t] * sum_h rows[y, h] * sum_w columns[x, w] * level[t, h, w]

This equals a trilinear `grid_sample` on the grid of all (f, y, x), which is not needed as such. A cell is read where
the weights of its time slot, row and column are not zero; a single frame reads few of them.
"""

from typing import NamedTuple

import torch

from .configuration_classquery import ClassQueryConfig


Shapes = list[tuple[int, int, int]]


class AxisWeights(NamedTuple):
    """Weights of the cells of a level along each axis; the batch is 1 where all clips share them.

    Args:
        times: Shape (1, num_output_frames, t).
        rows: Shape (batch, target_h, h).
        columns: Shape (batch, target_w, w).
    """

    times: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor


def is_transposed(config: ClassQueryConfig, shapes: Shapes, num_frames: int) -> bool:
    """Whether the resampled rows come from columns: the release confuses them where a level already has all frames."""
    return config.resampling_grid == "released" and shapes[-2][0] == num_frames


def axis_weights(
    config: ClassQueryConfig, shapes: Shapes, level_masks: list[torch.Tensor], num_frames: int
) -> list[AxisWeights]:
    """Weights that bring each level to the size of the last but one and to the decoded frames of a clip.

    Args:
        config: How levels are resampled.
        shapes: Size (t, h, w) of each level.
        level_masks: One mask (batch, h, w) per level, true on the real cells that padding="masked" confines it to.
        num_frames: Frames of a clip.
    """
    if config.padding == "released":
        level_masks = [torch.ones_like(mask[:1]) for mask in level_masks]
    released, transposed = config.resampling_grid == "released", is_transposed(config, shapes, num_frames)
    target_rows, target_columns = _real_lines(level_masks[-2])
    if transposed:
        target_rows, target_columns = target_columns, target_rows
    frames = target_rows.new_ones(1, num_frames)
    weights = []
    for (num_slots, _, _), mask in zip(shapes, level_masks, strict=True):
        rows, columns = _real_lines(mask)
        times = _line_weights(frames, frames.new_ones(1, num_slots), released and not transposed)
        weights.append(
            AxisWeights(
                times[:, config.output_frame_slice(num_frames)],
                _line_weights(target_rows, rows, released),
                _line_weights(target_columns, columns, released),
            )
        )
    return weights


def _real_lines(mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which rows and columns are real, read off the first column and row: (batch, h) and (batch, w)."""
    return mask[:, :, 0], mask[:, 0]


def _line_weights(mask: torch.Tensor, source_mask: torch.Tensor, released: bool) -> torch.Tensor:
    """Weights of linear interpolation from the cells of one line to those of another.

    Args:
        mask: Shape (batch, size), true on the real cells, which come first.
        source_mask: The same of the line to read, (batch, source_size).
        released: Place the outermost cells on the edges, with zeros beyond them, which halves the borders; otherwise
            in the middle of their part of the line.

    Returns:
        Shape (batch, size, source_size), float32.
    """
    cells = torch.arange(mask.shape[1], device=mask.device)
    sources = torch.arange(source_mask.shape[1], device=mask.device)
    extent, source_extent = mask.sum(1, keepdim=True), source_mask.sum(1, keepdim=True)
    if released:
        positions = cells / (extent - 1).clamp(min=1) * source_extent - 0.5
    else:
        positions = ((cells + 0.5) / extent * source_extent - 0.5).clamp(min=0).minimum(source_extent - 1)
    # A hat of width one around each position.
    return (1 - (positions[..., None] - sources).abs()).clamp(min=0) * source_mask[:, None]


def interpolate(states: torch.Tensor, weights: AxisWeights) -> torch.Tensor:
    """Interpolate one level.

    Args:
        states: Cells of the level in row-major (t, h, w) order, (batch, t * h * w, channels).
        weights: Of its cells.

    Returns:
        Shape (batch, num_output_frames, rows, columns, channels), in the dtype of `states`.
    """
    times, rows, columns = weights
    shape = tuple(axis.shape[-1] for axis in weights)
    # Half precision is too coarse for places in a frame.
    with torch.autocast(states.device.type, enabled=False):
        # (batch, t, h, w * channels) -> (batch, t, target_h, w, channels)
        volume = states.float().unflatten(1, shape).flatten(3)
        volume = (rows[:, None] @ volume).unflatten(3, (shape[2], -1))
        # -> (batch, t, target_h, target_w, channels) -> (batch, frames, target_h * target_w * channels)
        volume = columns[:, None, None] @ volume
        frames = times @ volume.flatten(2)
    return frames.unflatten(2, volume.shape[2:]).to(states.dtype)


__all__ = ["AxisWeights", "Shapes", "axis_weights", "interpolate", "is_transposed"]
