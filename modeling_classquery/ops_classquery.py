"""3-D multi-scale deformable attention: the one door through which the model reaches the operator.

The plain PyTorch form below runs everywhere and is the reference for every other implementation.
"""

import torch
import torch.nn.functional as F


def deformable_attention_3d(
    value: torch.Tensor,
    spatio_temporal_shapes: list[tuple[int, int, int]],
    reference_points: torch.Tensor,
    sampling_offsets: torch.Tensor,
    attention_logits: torch.Tensor,
    offset_scale: torch.Tensor,
) -> torch.Tensor:
    """Sum values sampled around each query's reference points, weighted by a softmax over all levels and points.

    Each level is sampled and weighted by itself, so that no tensor ever holds the samples of all levels.

    Args:
        value: Features of shape (batch, num_cells, num_heads, head_dim); the cells of all levels one after the other,
            each level in row-major (t, h, w) order.
        spatio_temporal_shapes: Size (t, h, w) of each level; their products sum to `num_cells`.
        reference_points: Shape (batch, num_queries, num_levels, 3), as (x, y, t) in [0, 1] of each level.
        sampling_offsets: Shape (batch, num_queries, num_heads, num_levels, num_points, 3), as (x, y, t).
        attention_logits: Shape (batch, num_queries, num_heads, num_levels, num_points).
        offset_scale: Shape (num_levels, 3): the length of an offset of one along (x, y, t), as part of the level's.

    Returns:
        Shape (batch, num_queries, num_heads * head_dim), in the dtype of `value`.
    """
    dtype = torch.promote_types(value.dtype, torch.float32)
    weights = attention_logits.to(dtype).flatten(3).softmax(-1).view(attention_logits.shape)
    output = 0
    for level, (level_value, shape) in enumerate(_split_levels(value.to(dtype), spatio_temporal_shapes)):
        offsets = sampling_offsets[:, :, :, level].to(dtype) * offset_scale[level].to(dtype)
        locations = reference_points[:, :, None, level, None].to(dtype) + offsets
        output = output + _sample_level(level_value, shape, locations, weights[:, :, :, level])
    return output.to(value.dtype)


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
        Shape (batch, num_queries, num_heads * head_dim).
    """
    levels = _split_levels(value, spatio_temporal_shapes)
    return sum(
        _sample_level(level_value, shape, sampling_locations[:, :, :, level], attention_weights[:, :, :, level])
        for level, (level_value, shape) in enumerate(levels)
    )


def _split_levels(value: torch.Tensor, shapes: list[tuple[int, int, int]]):
    return zip(value.split([t * h * w for t, h, w in shapes], dim=1), shapes, strict=True)


def _sample_level(
    value: torch.Tensor, shape: tuple[int, int, int], locations: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Sample one level trilinearly with zeros outside, and sum over the points: (batch, num_queries, channels)."""
    batch_size, _, num_heads, head_dim = value.shape
    num_queries, num_points = locations.shape[1], locations.shape[3]
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
