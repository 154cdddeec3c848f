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

from classquery import ClassQueryModel, modeling_classquery
from classquery.modeling_classquery import (
    ClassQueryClassAttention,
    ClassQueryClassifyingLayer,
    ClassQueryLocalizingLayer,
    ClassQueryMemory,
    ClassQueryMixtureNorm,
    ClassQueryMixtures,
    class_group_mask,
)
from classquery.plan_classquery import ClipPlan


# Resampling: every cell of every level is encoded, and each decoded cell samples them at its place in the grid.


def plan_for_every_cell(model: ClassQueryModel, features, num_frames, padding=None, every_cell=False) -> ClipPlan:
    """In place of `ClassQueryModel.plan`."""
    shapes = [tuple(level.shape[2:]) for level in features]
    return ClipPlan.make(model.config, shapes, num_frames, features[0].device, padding, every_cell=True)


def resample(model: ClassQueryModel, hidden_states, plan) -> torch.Tensor:
    """In place of `ClassQueryModel.resample`: trilinear sampling on a grid of all decoded cells."""
    padding_mode = "zeros" if model.config.resampling_grid == "released" else "border"
    levels = []
    level_masks = plan.level_masks or [torch.ones(1, h, w, dtype=torch.bool) for _, h, w in plan.shapes]
    states_per_level = hidden_states.split([math.prod(shape) for shape in plan.shapes], dim=1)
    for states, shape, mask in zip(states_per_level, plan.shapes, level_masks, strict=True):
        # (batch, t * h * w, d_model) -> (batch, d_model, t, h, w)
        volume = states.transpose(1, 2).unflatten(2, shape)
        grid = _resampling_grid(model.config, plan.shapes[-2], level_masks[-2], mask, plan.num_frames)
        if model.config.padding == "masked":
            volume = volume * mask[:, None, None]
        grid = grid.expand(len(volume), -1, -1, -1, -1)
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


# Localizing layers: every actor has keys and values of its own.


def memory_of_levels(levels, *others) -> ClassQueryMemory:
    """In place of `ClassQueryMemory.of_levels`: the levels as they are."""
    return ClassQueryMemory(levels, None, *others)


def norm_of_mixtures(norm: ClassQueryMixtureNorm, levels, covariances, weights, num_memories) -> ClassQueryMixtures:
    """In place of `ClassQueryMixtureNorm.forward`: each actor's mixture only."""
    mixtures = torch.einsum("fnl,lfsc->fnsc", weights, levels)
    memory = F.layer_norm(mixtures, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    return ClassQueryMixtures(memory, None, None, None)


def attend_to_memory(
    layer: ClassQueryLocalizingLayer, actors, query_position, query_sine, memory, weights, mixtures
) -> torch.Tensor:
    """In place of `ClassQueryLocalizingLayer._attend_to_memory`: keys and values of each actor's mixture."""
    num_queries, num_heads = actors.shape[1], layer.num_heads
    actor_memory = mixtures.memory
    query_content = layer.cross_attn_q_content(actors)
    key_content = layer.cross_attn_k_content(actor_memory)
    key_position = layer.cross_attn_k_position(memory.position)[:, None].expand_as(key_content)
    if layer.cross_attn_q_position is not None:
        query_content = query_content + layer.cross_attn_q_position(query_position)
        key_content = key_content + key_position
    query = interleave_heads(query_content, layer.cross_attn_q_sine(query_sine), num_heads)
    key = interleave_heads(key_content, key_position, num_heads)
    # One row per actor: its single query attends to its own memory.
    attended, _ = attend(
        layer.cross_attn,
        query.flatten(0, 1)[:, None],
        key.flatten(0, 1),
        layer.cross_attn_v(actor_memory).flatten(0, 1),
        _per_actor(memory.attention_mask, num_queries),
    )
    return layer.cross_attn_layer_norm(actors + layer.dropout(attended.view_as(actors)))


def interleave_heads(content, position, num_heads) -> torch.Tensor:
    """Join two (..., d_model) tensors so that each head sees its share of both: (..., 2 * d_model)."""
    shares = (states.unflatten(-1, (num_heads, -1)) for states in (content, position))
    return torch.cat(tuple(shares), dim=-1).flatten(-2)


def attend(module, query, key, value, attention_mask) -> tuple[torch.Tensor, torch.Tensor]:
    """Multi-head attention: (rows, num_queries, d_model), and the attention (rows, heads, num_queries, num_keys)."""
    query, key, value = (
        states.unflatten(-1, (module.num_heads, -1)).transpose(1, 2) for states in (query, key, value)
    )
    logits = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
    if attention_mask is not None:
        logits = logits + attention_mask
    attention = logits.softmax(-1)
    attended = F.dropout(attention, module.dropout, module.training) @ value
    return module.out_proj(attended.transpose(1, 2).flatten(2)), attention


def _per_actor(attention_mask, num_queries):
    """(num_clip_frames, num_cells) -> (num_clip_frames * num_queries, 1, 1, num_cells)."""
    return None if attention_mask is None else attention_mask.repeat_interleave(num_queries, 0)[:, None, None]


# Classifying layers: every class of every actor has a query of its own, content and position joined.


def attend_to_classes(
    layer: ClassQueryClassifyingLayer, class_queries, num_rows, of_classes=slice(None)
) -> torch.Tensor:
    """In place of `ClassQueryClassifyingLayer._attend_to_classes`: also where the classes of all actors are one."""
    class_queries = class_queries.expand(num_rows, -1, -1)
    mask = class_group_mask(layer.class_groups, class_queries)
    update, _ = attend(layer.self_attn, class_queries, class_queries, class_queries, mask)
    return layer.self_attn_layer_norm(class_queries + layer.dropout(update))[:, of_classes]


def class_attention(
    module: ClassQueryClassAttention,
    query,
    position_query,
    key,
    position_key,
    value,
    attention_mask=None,
    output_attentions=False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """In place of `ClassQueryClassAttention.forward`."""
    num_queries = position_query.shape[1]
    position_query = position_query.flatten(0, 1)[:, None].expand_as(query)
    position_key = position_key.repeat_interleave(num_queries, dim=0)
    if module.interleave:
        query = interleave_heads(query, position_query, module.num_heads)
        key = interleave_heads(key, position_key, module.num_heads)
    else:
        # Split into heads afterwards, the first half of them sees only content and the second only positions.
        query, key = torch.cat((query, position_query), dim=-1), torch.cat((key, position_key), dim=-1)
    attended, attention = attend(module, query, key, value, _per_actor(attention_mask, num_queries))
    return attended, attention if output_attentions else None


# Layers that treat each cell by itself, on all of them at once.


def on_all_rows(transform, *states) -> torch.Tensor:
    """In place of `in_pieces`."""
    return transform(*states)


REWRITES = {
    "rows at a time": [(modeling_classquery, "in_pieces", on_all_rows)],
    "last encoder layer": [(ClassQueryModel, "plan", plan_for_every_cell)],
    "resampling": [(ClassQueryModel, "resample", resample)],
    "localizing layers": [
        (ClassQueryMemory, "of_levels", memory_of_levels),
        (ClassQueryMixtureNorm, "forward", norm_of_mixtures),
        (ClassQueryLocalizingLayer, "_attend_to_memory", attend_to_memory),
    ],
    "class attention": [
        (ClassQueryClassAttention, "forward", class_attention),
        (ClassQueryClassifyingLayer, "_attend_to_classes", attend_to_classes),
    ],
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
