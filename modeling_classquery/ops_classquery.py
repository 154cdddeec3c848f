"""3-D multi-scale deformable attention: the one door through which the model reaches the operator.

The plain PyTorch form below runs everywhere and is the reference. Where the package's compiled implementations are
installed beside this module, the first that fits the tensors runs instead; model code on the Hub travels alone.
"""

import functools
import importlib.util
import os
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F


_FOLDER_VARIABLE = "CLASSQUERY_KERNELS_FOLDER"


def _find_kernels() -> ModuleType | None:
    """The compiled implementations: those beside this module, or from a folder of the Hub's package `kernels`.

    Raises:
        ImportError: If `CLASSQUERY_KERNELS_FOLDER` names a folder, but the package is not installed.
    """
    if folder := os.environ.get(_FOLDER_VARIABLE):
        spec = importlib.util.find_spec("kernels")
        # A folder of that name, such as this project's, has no origin.
        if spec is None or spec.origin is None:
            raise ImportError(f"{_FOLDER_VARIABLE} is set, which needs the package kernels: pip install kernels")
        return importlib.import_module("kernels").get_local_kernel(Path(folder))
    beside = f"{__package__}.kernels"
    # With the operators, so that a program which was traced with them finds them.
    return importlib.import_module(f"{beside}.choice") if importlib.util.find_spec(beside) else None


_KERNELS: Any = _find_kernels()


def deformable_attention_3d(
    value: torch.Tensor,
    spatio_temporal_shapes: list[tuple[int, int, int]],
    reference_points: torch.Tensor,
    sampling_offsets: torch.Tensor,
    attention_logits: torch.Tensor,
    offset_scale: torch.Tensor,
) -> torch.Tensor:
    """Sum values sampled around each query's reference points, weighted by a softmax over all levels and points.

    Args:
        value: Features of shape (batch, num_cells, num_heads, head_dim); the cells of all levels one after the other,
            each level in row-major (t, h, w) order. A level may be empty.
        spatio_temporal_shapes: Size (t, h, w) of each level; their products sum to `num_cells`.
        reference_points: Shape (batch, num_queries, num_levels, 3), as (x, y, t) in [0, 1] of each level.
        sampling_offsets: Shape (batch, num_queries, num_heads, num_levels, num_points, 3), as (x, y, t).
        attention_logits: Shape (batch, num_queries, num_heads, num_levels, num_points).
        offset_scale: Shape (num_levels, 3): the length of an offset of one along (x, y, t), as part of the level's.

    Returns:
        Shape (batch, num_queries, num_heads * head_dim), in the dtype of `value`. Cells outside of a level count as
        zero, and so does a location that is NaN or infinite.
    """
    tensors = (sampling_offsets, attention_logits, reference_points, offset_scale)
    if _has_kernel(value, spatio_temporal_shapes, *tensors):
        return _KERNELS.deformable_attention_3d(
            value, spatio_temporal_shapes, reference_points, sampling_offsets, attention_logits, offset_scale
        )
    offsets, logits, references, scale = (tensor.to(_computed_dtype(value)) for tensor in tensors)
    weights = logits.flatten(3).softmax(-1).view(logits.shape)
    levels = (
        (references[:, :, None, level, None] + offsets[:, :, :, level] * scale[level], weights[:, :, :, level])
        for level in range(len(spatio_temporal_shapes))
    )
    return _sum_over_levels(value, spatio_temporal_shapes, levels)


def ms_deform_attn_3d(
    value: torch.Tensor,
    spatio_temporal_shapes: list[tuple[int, int, int]],
    sampling_locations: torch.Tensor,
    attention_weights: torch.Tensor,
) -> torch.Tensor:
    """Sum values sampled at the given locations with the given weights; the operator of the published model.

    Args:
        value: Shape (batch, num_cells, num_heads, head_dim), as in `deformable_attention_3d`.
        spatio_temporal_shapes: Size (t, h, w) of each level.
        sampling_locations: Shape (batch, num_queries, num_heads, num_levels, num_points, 3), as (x, y, t) in [0, 1].
        attention_weights: Shape (batch, num_queries, num_heads, num_levels, num_points).

    Returns:
        Shape (batch, num_queries, num_heads * head_dim), in the dtype of `value`.
    """
    tensors = (sampling_locations, attention_weights)
    if _has_kernel(value, spatio_temporal_shapes, *tensors):
        return _KERNELS.ms_deform_attn_3d(value, spatio_temporal_shapes, *tensors)
    locations, weights = (tensor.to(_computed_dtype(value)) for tensor in tensors)
    levels = ((locations[:, :, :, level], weights[:, :, :, level]) for level in range(len(spatio_temporal_shapes)))
    return _sum_over_levels(value, spatio_temporal_shapes, levels)


def _has_kernel(value: torch.Tensor, shapes: list[tuple[int, int, int]], *tensors: torch.Tensor) -> bool:
    """Whether a compiled implementation runs on these tensors; what fits none is refused with a reason."""
    if _KERNELS is None:
        return False
    _KERNELS.check_inputs(value, shapes, *tensors)
    return _KERNELS.chosen(value.device.type) != "torch"


def _computed_dtype(value: torch.Tensor) -> torch.dtype:
    # Not torch.promote_types, which torch.export would put into the graph.
    return torch.float64 if value.dtype == torch.float64 else torch.float32


def _sum_over_levels(
    value: torch.Tensor, shapes: list[tuple[int, int, int]], levels: Iterable[tuple[torch.Tensor, torch.Tensor]]
) -> torch.Tensor:
    """Sample and weigh each level by itself, so that no tensor ever holds the samples of all levels.

    Args:
        value: As in `deformable_attention_3d`.
        shapes: Size (t, h, w) of each level.
        levels: Per level, the locations (batch, num_queries, num_heads, num_points, 3) and the weights (batch,
            num_queries, num_heads, num_points), in the dtype that is computed in.
    """
    level_values = value.to(_computed_dtype(value)).split([t * h * w for t, h, w in shapes], dim=1)
    sampled = (
        _sample_level(level_value, shape, locations, weights)
        for level_value, shape, (locations, weights) in zip(level_values, shapes, levels, strict=True)
    )
    return functools.reduce(torch.add, sampled).to(value.dtype)


def _sample_level(
    value: torch.Tensor, shape: tuple[int, int, int], locations: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Sample one level trilinearly with zeros outside, and sum over the points: (batch, num_queries, channels)."""
    batch_size, _, num_heads, head_dim = value.shape
    num_queries, num_points = locations.shape[1], locations.shape[3]
    if 0 in shape:
        # An empty level counts as a cell of zeros: grid_sample wants at least one.
        value, shape = value.new_zeros(batch_size, 1, num_heads, head_dim), (1, 1, 1)
    # (batch, cells, heads, head_dim) -> (batch * heads, head_dim, t, h, w)
    volume = value.permute(0, 2, 3, 1).reshape(batch_size * num_heads, head_dim, *shape)
    # (batch, queries, heads, points, 3) -> (batch * heads, 1, queries, points, 3), from [0, 1] to [-1, 1]
    grid = 2 * locations.transpose(1, 2).reshape(batch_size * num_heads, 1, num_queries, num_points, 3) - 1
    samples = F.grid_sample(volume, grid, align_corners=False).squeeze(2)
    # (batch, queries, heads, points) -> (batch * heads, 1, queries, points)
    weights = weights.transpose(1, 2).reshape(batch_size * num_heads, 1, num_queries, num_points)
    # (batch * heads, head_dim, queries) -> (batch, queries, heads * head_dim)
    weighted = (samples * weights).sum(-1)
    return weighted.view(batch_size, num_heads * head_dim, num_queries).transpose(1, 2)


__all__ = ["deformable_attention_3d", "ms_deform_attn_3d"]
