"""The network's steps in their readable form, one thing at a time, on the weights of the network's own modules.

What the network computes in another order, to save time or memory, is compared with these in the tests and timed
against them in benchmarks/model.py. They take the arguments of the forms they stand for.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
import torch.nn.functional as F

from classquery import ClassQueryModel


# Resampling: every cell of every level is encoded, and each decoded cell samples them at its place in the grid.


def encode_all_cells(model: ClassQueryModel, shapes, level_masks, num_frames) -> None:
    """In place of `ClassQueryModel.cells_to_encode`: all of them."""


def resample(model: ClassQueryModel, hidden_states, shapes, level_masks, num_frames, cells=None) -> torch.Tensor:
    """In place of `ClassQueryModel.resample`: trilinear sampling on a grid of all decoded cells."""
    padding_mode = "zeros" if model.config.resampling_grid == "released" else "border"
    levels = []
    states_per_level = hidden_states.split([math.prod(shape) for shape in shapes], dim=1)
    for states, shape, mask in zip(states_per_level, shapes, level_masks, strict=True):
        # (batch, t * h * w, d_model) -> (batch, d_model, t, h, w)
        volume = states.transpose(1, 2).unflatten(2, shape)
        grid = _resampling_grid(model.config, shapes[-2], level_masks[-2], mask, num_frames)
        if model.config.padding == "masked":
            volume = volume * mask[:, None, None]
        sampled = F.grid_sample(volume, grid, padding_mode=padding_mode, align_corners=False)
        # (batch, d_model, frames, h, w) -> (batch * frames, h * w, d_model)
        levels.append(sampled.permute(0, 2, 3, 4, 1).flatten(0, 1).flatten(1, 2))
    return torch.stack(levels)


def _resampling_grid(config, shape, mask, source_mask, num_frames) -> torch.Tensor:
    """Where each cell of a level of the given shape lies in another: (batch, frames, h, w, 3), (x, y, t)."""
    released = config.resampling_grid == "released"
    if config.padding == "released":
        mask, source_mask = torch.ones_like(mask), torch.ones_like(source_mask)
    rows, columns, source_rows, source_columns = mask[:, :, 0], mask[:, 0], source_mask[:, :, 0], source_mask[:, 0]
    if released and shape[0] == num_frames:
        # The release takes (y, x) for (x, y) where a level already has all frames.
        x = _resampling_axis(rows, source_columns, released)[:, :, None]
        y = _resampling_axis(columns, source_rows, released)[:, None, :]
    else:
        x = _resampling_axis(columns, source_columns, released)[:, None, :]
        y = _resampling_axis(rows, source_rows, released)[:, :, None]
    times = (2 * torch.arange(num_frames) + 1) / num_frames - 1
    if released and shape[0] != num_frames:
        times = torch.linspace(-1, 1, num_frames)
    times = times[config.output_frame_indices(num_frames)]
    size = (len(mask), len(times), *shape[1:])
    return torch.stack([axis.expand(size) for axis in (x[:, None], y[:, None], times[:, None, None])], dim=-1)


def _resampling_axis(mask, source_mask, released) -> torch.Tensor:
    """Where the cells along one axis lie along that of another level: (batch, size), in [-1, 1] of the whole axis."""
    cells = torch.arange(mask.shape[1])
    extent, source_extent = mask.sum(1, keepdim=True), source_mask.sum(1, keepdim=True)
    if released:
        positions = cells / (extent - 1).clamp(min=1)
    else:
        half_cell = 0.5 / source_extent
        positions = ((cells + 0.5) / extent).clamp(half_cell, 1 - half_cell)
    return 2 * positions * source_extent / source_mask.shape[1] - 1


REWRITES = {
    "last encoder layer": [(ClassQueryModel, "cells_to_encode", encode_all_cells)],
    "resampling": [(ClassQueryModel, "resample", resample)],
}


@contextmanager
def readable(*rewrites: str) -> Iterator[None]:
    """Compute these parts, by default all, in their readable form."""
    patches = [
        mock.patch.object(owner, name, form)
        for rewrite in rewrites or REWRITES
        for owner, name, form in REWRITES[rewrite]
    ]
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()
