"""The ClassQuery video action detector: every action class has its own query and so its own attention map.

An independent implementation of "Classification Matters: Improving Video Action Detection with Class-Specific
Attention" (ECCV 2024, arXiv 2407.19698), in reading order: position encodings, deformable encoder, resampling to one
level, localizing and classifying decoder layers, heads. Where the released network differs from the paper or from
geometry, the default follows the release, so that its checkpoints load, and a configuration value gives the other
behaviour (`ClassQueryConfig`, last group).

Tensors are batch first. Cells are ordered (t, h, w), points and boxes (x, y, ...). In the decoder the frames of all
clips stand side by side: `num_clip_frames = batch * num_output_frames`.
"""

import itertools
import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.weak import WeakIdKeyDictionary
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .configuration_classquery import ClassQueryConfig
from .linear_classquery import ClassQueryLinear, is_plain_inference
from .loss_classquery import (
    NotFiniteError,
    action_detection_loss,
    action_scores,
    inverse_sigmoid,
    supervised_frames_of,
    targets_of,
)
from .model_card_classquery import make_model_card, replace_template
from .modeling_classquery_csn import ClassQueryCSNBackbone, ClassQueryInputProjection
from .modeling_classquery_tokens import TOKEN_BACKBONES
from .modeling_classquery_vit import ClassQueryDoubling, ClassQueryFeaturePyramid, ClassQueryViTBackbone
from .ops_classquery import deformable_attention_3d
from .plan_classquery import ClipPlan, ClipPlans, Padding, interleaved_sine, join_encodings, sine_periods
from .resampling_classquery import Shapes, interpolate
from .text_classquery import ClassQueryTextVectors, ClassQueryWords, Encode, TextError, Words, set_words


@dataclass
class ClassQueryDecoderOutput(ModelOutput):
    r"""
    actor_hidden_states (`torch.FloatTensor` of shape `(decoder_layers, num_clip_frames, num_queries, d_model)`):
        Normalised features of the actor candidates after each layer.
    class_hidden_states (`torch.FloatTensor` of shape
        `(decoder_layers, num_clip_frames * num_queries, num_labels, d_model)`):
        Normalised features of each class for each actor candidate.
    reference_boxes (`torch.FloatTensor` of shape `(decoder_layers, num_clip_frames, num_queries, 4)`):
        Boxes that each layer starts from: (cx, cy, w, h) in [0, 1].
    pred_boxes (`torch.FloatTensor` of shape `(decoder_layers, num_clip_frames, num_queries, 4)`):
        Boxes that are read from the features of each layer.
    denoised_boxes (`torch.FloatTensor` of shape `(decoder_layers, num_clip_frames, num_boxes, 4)`, *optional*):
        Boxes that each layer makes of `noised_boxes`.
    class_attentions (`tuple(torch.FloatTensor)`, *optional*, with `output_attentions=True`):
        Attention of the class queries of each layer, `(num_clip_frames * num_queries, heads, num_labels, num_cells)`.
    """

    actor_hidden_states: torch.Tensor | None = None
    class_hidden_states: torch.Tensor | None = None
    reference_boxes: torch.Tensor | None = None
    pred_boxes: torch.Tensor | None = None
    denoised_boxes: torch.Tensor | None = None
    class_attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class ClassQueryModelOutput(ModelOutput):
    r"""
    actor_hidden_states (`torch.FloatTensor` of shape
        `(decoder_layers, batch, num_output_frames, num_queries, d_model)`):
        Normalised features of the actor candidates after each decoder layer.
    class_hidden_states (`torch.FloatTensor` of shape
        `(decoder_layers, batch, num_output_frames, num_queries, num_labels, d_model)`):
        Normalised features of each class for each actor candidate.
    reference_boxes (`torch.FloatTensor` of shape `(decoder_layers, batch, num_output_frames, num_queries, 4)`):
        Boxes that each decoder layer starts from: (cx, cy, w, h) in [0, 1].
    pred_boxes (`torch.FloatTensor` of shape `(decoder_layers, batch, num_output_frames, num_queries, 4)`):
        Boxes that are read from the features of each decoder layer.
    denoised_boxes (`torch.FloatTensor` of shape `(decoder_layers, num_clip_frames, num_boxes, 4)`, *optional*):
        Boxes that each decoder layer makes of `noised_boxes`.
    encoder_last_hidden_state (`torch.FloatTensor` of shape `(batch, num_cells, d_model)`, *optional*, with
        `output_hidden_states=True`):
        Output of the encoder, all levels one after the other. A detector of keyframes computes its last layer only
        where the keyframe is read from, unless this is asked for.
    hidden_states (`tuple(torch.FloatTensor)`, *optional*, with `output_hidden_states=True`):
        Input of the encoder and output of each of its layers, `(batch, num_cells, d_model)` each.
    class_attentions (`tuple(torch.FloatTensor)`, *optional*, with `output_attentions=True`):
        Attention of each class query, one tensor per decoder layer, of shape
        `(batch, num_output_frames, num_queries, num_labels, heads, h, w)`; sums to 1 over (h, w).
    """

    actor_hidden_states: torch.Tensor | None = None
    class_hidden_states: torch.Tensor | None = None
    reference_boxes: torch.Tensor | None = None
    pred_boxes: torch.Tensor | None = None
    denoised_boxes: torch.Tensor | None = None
    encoder_last_hidden_state: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    class_attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class ClassQueryDetectionOutput(ModelOutput):
    r"""
    loss (`torch.FloatTensor` of shape `()`, *optional*, with `labels`):
        Weighted sum of all loss terms of all decoder layers.
    loss_dict (`dict[str, torch.Tensor]`, *optional*, with `labels`):
        Unweighted terms `loss_class`, `loss_actor`, `loss_bbox`, `loss_giou`, in training with denoising also
        `loss_denoising_bbox` and `loss_denoising_giou`; with suffix `_i` of decoder layer i.
    logits (`torch.FloatTensor` of shape `(batch, num_output_frames, num_queries, num_labels)`):
        Action logits of each actor candidate.
    scores (`torch.FloatTensor` of the shape of `logits`):
        Probability of each action: sigmoid of the logits, with `score_with_actor` times the actor's confidence.
    pred_boxes (`torch.FloatTensor` of shape `(batch, num_output_frames, num_queries, 4)`):
        (cx, cy, w, h) in [0, 1], relative to the frame without padding.
    actor_logits (`torch.FloatTensor` of shape `(batch, num_output_frames, num_queries, 3)`):
        Whether a candidate is an actor (1) or background (2); 0 is never a target.
    auxiliary_outputs (`list[dict]`):
        `logits`, `pred_boxes` and `actor_logits` of every decoder layer but the last.
    reference_boxes, encoder_last_hidden_state, hidden_states, class_attentions:
        As in [`ClassQueryModelOutput`].
    """

    loss: torch.Tensor | None = None
    loss_dict: dict[str, torch.Tensor] | None = None
    logits: torch.Tensor | None = None
    scores: torch.Tensor | None = None
    pred_boxes: torch.Tensor | None = None
    actor_logits: torch.Tensor | None = None
    auxiliary_outputs: list[dict[str, torch.Tensor]] | None = None
    reference_boxes: torch.Tensor | None = None
    encoder_last_hidden_state: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    class_attentions: tuple[torch.Tensor, ...] | None = None


# Boxes


def box_position_embedding(boxes: torch.Tensor, config: ClassQueryConfig) -> torch.Tensor:
    """Encode boxes (..., 4), (cx, cy, w, h) in [0, 1], as (..., 2 * d_model): cy, cx, w, h, each in a quarter."""
    width = config.d_model // 2
    if config.sine_frequencies == "octaves":
        periods = sine_periods(width, config, boxes.device)
    else:
        # Unlike those of cells, boxes are encoded in pairs in the release, too.
        periods = 10000 ** (2 * (torch.arange(width, device=boxes.device) // 2) / width)
    cx, cy, w, h = boxes.float().unbind(-1)
    ordered = torch.stack((cy, cx, w, h), dim=-1) * 2 * math.pi
    return interleaved_sine(ordered, periods).flatten(-2)


def grid_boxes(num_boxes: int, width: float = 0.15, height: float = 0.35) -> torch.Tensor:
    """Boxes (num_boxes, 4) of one size, (cx, cy, w, h) in [0, 1], in the middle of the cells of a grid."""
    num_columns = math.ceil(math.sqrt(num_boxes))
    num_rows = math.ceil(num_boxes / num_columns)
    index = torch.arange(num_boxes)
    centers = ((index % num_columns + 0.5) / num_columns, (index // num_columns + 0.5) / num_rows)
    return torch.stack((*centers, torch.full((num_boxes,), width), torch.full((num_boxes,), height)), dim=-1)


# Building blocks


class ClassQueryMLP(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, *widths: int):
        super().__init__()
        self.layers = nn.ModuleList(ClassQueryLinear(*pair) for pair in zip(widths[:-1], widths[1:], strict=True))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        for layer in self.layers[:-1]:
            hidden_states = layer(hidden_states).relu()
        return self.layers[-1](hidden_states)


def without_autocast(module: nn.Module, states: torch.Tensor) -> torch.Tensor:
    """Apply a module in the precision of its parameters: half precision is too coarse for places in a frame."""
    with torch.autocast(states.device.type, enabled=False):
        return module(states.to(next(module.parameters()).dtype))


# A hidden layer of 2,048 channels for so many rows, 8 MB, stays in the cache of a CPU.
_ROWS_AT_A_TIME = 1024


def in_pieces(transform: Callable[..., torch.Tensor], *states: torch.Tensor) -> torch.Tensor:
    """Apply what treats each row of tensors (..., channels) by itself, on a CPU without gradients a few at a time.

    The wide hidden layer of all cells would have to be written to memory and read again.
    """
    rows = states[0].shape[:-1]
    if not is_plain_inference(states[0]) or math.prod(rows) <= _ROWS_AT_A_TIME:
        return transform(*states)
    pieces = zip(*(tensor.flatten(0, -2).split(_ROWS_AT_A_TIME) for tensor in states), strict=True)
    return torch.cat([transform(*piece) for piece in pieces]).unflatten(0, rows)


class ClassQueryFeedForward(nn.Module):
    """Post-norm feed-forward layer with a residual connection."""

    def __init__(self, d_model: int, ffn_dim: int, dropout: float):
        super().__init__()
        self.fc1 = ClassQueryLinear(d_model, ffn_dim)
        self.fc2 = ClassQueryLinear(ffn_dim, d_model)
        self.layer_norm = nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return in_pieces(self._transform, hidden_states)

    def _transform(self, hidden_states: torch.Tensor) -> torch.Tensor:
        update = self.fc2(self.dropout(F.relu(self.fc1(hidden_states), inplace=True)))
        return self.layer_norm(hidden_states + self.dropout(update))


class ClassQueryAttention(nn.Module):
    """Multi-head attention without input projections: queries, keys and values come in as they are attended.

    Queries and keys may be wider than values.
    """

    def __init__(self, config: ClassQueryConfig):
        super().__init__()
        self.config = config
        self.num_heads = config.decoder_attention_heads
        self.dropout = config.dropout
        self.is_causal = False
        self.out_proj = ClassQueryLinear(config.d_model, config.d_model)

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        output_attentions: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend.

        Args:
            query: Shape (rows, num_queries, width).
            key: Shape (rows, num_keys, width).
            value: Shape (rows, num_keys, d_model).
            attention_mask: Added to the logits; broadcasts to (rows, num_heads, num_queries, num_keys).
            output_attentions: Whether to return the attention; computed without a fused kernel then.

        Returns:
            The attended values of shape (rows, num_queries, d_model), and the attention of shape
            (rows, num_heads, num_queries, num_keys) or None.
        """
        heads = (split_heads(states, self.num_heads) for states in (query, key, value))
        attended, weights = self.attend(*heads, attention_mask, query.shape[-1] // self.num_heads, output_attentions)
        return self.out_proj(attended.flatten(2)), weights

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        width: int,
        output_attentions: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend with split heads, (rows, heads, length, head_dim) each, in the implementation of the configuration.

        Logits are divided by the root of `width`, to which all that is summed up in them amounts. Returns the attended
        values of shape (rows, length, heads, head_dim), and the attention or None.
        """
        implementation = "eager" if output_attentions else self.config._attn_implementation
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        dropout = self.dropout if self.training else 0.0
        return attend(self, query, key, value, attention_mask, dropout=dropout, scaling=width**-0.5, is_causal=False)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention in plain operations: ((rows, length, heads, head_dim), (rows, heads, length, num_keys))."""
    logits = query @ key.transpose(-2, -1) * scaling
    if attention_mask is not None:
        logits = logits + attention_mask
    weights = logits.softmax(-1, dtype=torch.float32).to(query.dtype)
    attended = F.dropout(weights, p=dropout, training=module.training) @ value
    return attended.transpose(1, 2), weights


def split_heads(states: torch.Tensor, num_heads: int) -> torch.Tensor:
    """(..., length, width) -> (..., heads, length, width / heads)."""
    return states.unflatten(-1, (num_heads, -1)).transpose(-3, -2)


def class_group_mask(class_groups: Sequence[int] | None, class_queries: torch.Tensor) -> torch.Tensor | None:
    """Hide later groups of classes from earlier ones: (num_labels, num_labels), added to attention logits."""
    if class_groups is None:
        return None
    labels = torch.arange(sum(class_groups), device=class_queries.device)
    groups = sum(labels >= first for first in itertools.accumulate(class_groups))
    return (groups > groups[:, None]).to(class_queries.dtype) * torch.finfo(class_queries.dtype).min


def apart_mask(num_together: int, states: torch.Tensor) -> torch.Tensor:
    """Let the first see each other and the rest of states (rows, length, width) only itself: (length, length)."""
    index = torch.arange(states.shape[1], device=states.device)
    is_apart = index >= num_together
    hidden = (is_apart | is_apart[:, None]) & (index != index[:, None])
    return hidden.to(states.dtype) * torch.finfo(states.dtype).min


# Encoder


class ClassQueryDeformableAttention(nn.Module):
    """Deformable self-attention over the cells of all levels, in time and space."""

    def __init__(self, config: ClassQueryConfig):
        super().__init__()
        self.num_heads = config.encoder_attention_heads
        self.samples = (config.num_feature_levels, config.encoder_n_points)
        num_samples = self.num_heads * math.prod(self.samples)
        self.sampling_offsets = ClassQueryLinear(config.d_model, num_samples * 3)
        self.attention_weights = ClassQueryLinear(config.d_model, num_samples)
        self.value_proj = ClassQueryLinear(config.d_model, config.d_model)
        self.output_proj = ClassQueryLinear(config.d_model, config.d_model)

    def reset_parameters(self) -> None:
        """Point the heads in different directions, one cell further with each point, and weigh all points equally."""
        init.zeros_(self.sampling_offsets.weight)
        init.copy_(self.sampling_offsets.bias, self._initial_offsets().flatten())
        for parameter in self.attention_weights.parameters():
            init.zeros_(parameter)
        for projection in (self.value_proj, self.output_proj):
            init.xavier_uniform_(projection.weight)
            init.zeros_(projection.bias)

    def _initial_offsets(self) -> torch.Tensor:
        """Offsets of shape (heads, levels, points, 3): quarter turns around the cell, half of them also in time."""
        head = torch.arange(self.num_heads)
        angles = head * math.pi / 2
        in_time = (head < self.num_heads / 2).float()
        directions = torch.stack((angles.cos(), angles.sin(), in_time), dim=-1)
        directions = directions / directions.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.samples[1] + 1)
        offsets = directions[:, None, None] * steps[:, None]
        return offsets.expand(-1, self.samples[0], -1, -1)

    def forward(
        self,
        query: torch.Tensor,
        hidden_states: torch.Tensor,
        reference_points: torch.Tensor,
        spatio_temporal_shapes: Shapes,
        offset_scales: torch.Tensor,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """Attend from some cells to points around each of them.

        Args:
            query: States of those cells with their positions added, (batch, num_queries, d_model).
            hidden_states: States of all cells, (batch, num_cells, d_model).
            reference_points: Centre of each of those cells in every level, (batch, num_queries, levels, 3).
            spatio_temporal_shapes: Size (t, h, w) of each level.
            offset_scales: Length of an offset of one along (x, y, t) as part of each level, (levels, 3).
            mask: True on real cells, (batch, num_cells), or None if all are.
        """
        value = self.value_proj(hidden_states)
        if mask is not None:
            value = value * mask[..., None].to(value.dtype)
        samples = (*query.shape[:2], self.num_heads, *self.samples)
        attended = deformable_attention_3d(
            value.unflatten(-1, (self.num_heads, -1)),
            spatio_temporal_shapes,
            reference_points,
            without_autocast(self.sampling_offsets, query).view(*samples, 3),
            self.attention_weights(query).view(samples),
            offset_scales,
        )
        return self.output_proj(attended)


class ClassQueryEncoderLayer(GradientCheckpointingLayer):
    """Deformable self-attention and a feed-forward layer, post-norm."""

    def __init__(self, config: ClassQueryConfig):
        super().__init__()
        self.self_attn = ClassQueryDeformableAttention(config)
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.feed_forward = ClassQueryFeedForward(config.d_model, config.encoder_ffn_dim, config.dropout)

    def forward(
        self,
        hidden_states: torch.Tensor,
        encodings: torch.Tensor,
        reference_points: torch.Tensor,
        spatio_temporal_shapes: Shapes,
        offset_scales: torch.Tensor,
        mask: torch.Tensor | None,
        read_index: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Transform all cells or, given `read_index`, compute those of these indices, which still attend to all.

        Args:
            hidden_states: States of all cells, (batch, num_cells, d_model).
            encodings: Of their positions, (batch or 1, num_cells, d_model).
            reference_points, spatio_temporal_shapes, offset_scales, mask: As in `ClassQueryDeformableAttention`, of
                all cells.
            read_index: Shape (num_read_cells,).
        """
        states = hidden_states
        if read_index is not None:
            states, encodings, reference_points = (
                tensor[:, read_index] for tensor in (states, encodings, reference_points)
            )
        update = self.self_attn(
            states + encodings, hidden_states, reference_points, spatio_temporal_shapes, offset_scales, mask
        )
        return self.feed_forward(self.self_attn_layer_norm(states + self.dropout(update)))


class ClassQueryEncoder(nn.Module):
    """Deformable transformer encoder over all levels of a clip."""

    def __init__(self, config: ClassQueryConfig):
        super().__init__()
        self.config = config
        self.level_embed = nn.Parameter(torch.empty(config.num_feature_levels, config.d_model))
        self.layers = nn.ModuleList(ClassQueryEncoderLayer(config) for _ in range(config.encoder_layers))

    def reset_parameters(self) -> None:
        """Initialise for training from scratch."""
        _reset_matrices(self)
        init.normal_(self.level_embed)
        for layer in self.layers:
            layer.self_attn.reset_parameters()

    def forward(
        self, features: list[torch.Tensor], plan: ClipPlan, output_hidden_states: bool = False
    ) -> tuple[torch.Tensor, list[torch.Tensor], tuple[torch.Tensor, ...] | None]:
        """Encode.

        Args:
            features: One map (batch, d_model, t, h, w) per level.
            plan: For clips of that size. Cells that it does not read are needed up to the last layer, where they are
                attended to, but no longer transformed themselves.
            output_hidden_states: Whether to return the states of all layers.

        Returns:
            The states of the read cells, (batch, num_read_cells, d_model), the encodings of positions of each level,
            (batch or 1, t, h, w, d_model), and, if asked for, input of the first and output of every layer.
        """
        level_encodings = [
            join_encodings(parts, shape).to(level.dtype) + embed
            for level, parts, shape, embed in zip(features, plan.encodings, plan.shapes, self.level_embed, strict=True)
        ]
        # (batch, d_model, t, h, w) -> (batch, num_cells, d_model)
        hidden_states = torch.cat([level.flatten(2).transpose(1, 2) for level in features], dim=1)
        of_cells = {
            "encodings": torch.cat([level.flatten(1, 3) for level in level_encodings], dim=1),
            "reference_points": plan.reference_points.expand(hidden_states.shape[0], -1, -1, -1),
            "spatio_temporal_shapes": plan.shapes,
            "offset_scales": plan.offset_scales,
            "mask": plan.cell_mask(),
        }
        all_hidden_states = [hidden_states] if output_hidden_states else None
        for layer in self.layers:
            read_index = plan.read_index if layer is self.layers[-1] else None
            hidden_states = layer(hidden_states, **of_cells, read_index=read_index)
            if output_hidden_states:
                all_hidden_states.append(hidden_states)
        return hidden_states, level_encodings, tuple(all_hidden_states) if output_hidden_states else None


# Decoder


class ClassQueryMemory(NamedTuple):
    """What the decoder reads.

    Args:
        levels: All levels at one size, centred over the channels, (num_levels, num_clip_frames, num_cells, d_model).
        covariances: Of the channels of the levels at each cell, (num_clip_frames, num_cells, num_levels, num_levels),
            float32.
        position: Shape (num_clip_frames, num_cells, d_model).
        size: (h, w) with h * w = num_cells.
        attention_mask: Lowest value on padding, 0 elsewhere; shape (num_clip_frames, num_cells), or None.
    """

    levels: torch.Tensor
    covariances: torch.Tensor
    position: torch.Tensor
    size: tuple[int, int]
    attention_mask: torch.Tensor | None

    @classmethod
    def of_levels(cls, levels: torch.Tensor, *others) -> "ClassQueryMemory":
        """Centre the levels, which the layer norm of a mixture of them would do to each mixture."""
        levels = levels - levels.mean(-1, keepdim=True)
        with torch.autocast(levels.device.type, enabled=False):
            covariances = torch.einsum("lfsc,mfsc->fslm", levels.float(), levels.float()) / levels.shape[-1]
        return cls(levels, covariances, *others)


class ClassQueryMixtures(NamedTuple):
    """For each actor, the layer norm of its own mixture of the levels, as it is and as a mixture again.

        memory[n, s] = scales[n, s] * sum_l weight[n, l] * (levels[l, s] - offset) + offset

    Args:
        memory: Shape (num_clip_frames, num_memories, num_cells, d_model); of the first actors, often all.
        levels: Shape (num_levels, num_clip_frames, num_cells, d_model).
        offset: Shape (d_model,).
        scales: Shape (num_clip_frames, num_queries, num_cells).
    """

    memory: torch.Tensor
    levels: torch.Tensor
    offset: torch.Tensor
    scales: torch.Tensor


class ClassQueryMixtureNorm(nn.LayerNorm):
    """Layer norm of mixtures of levels `sum_l weight[n, l] * level[l]`, one for each actor n.

    As the levels are centred, a mixture has mean 0 and the variance `weight[n] . covariance . weight[n]` at each cell,
    so that up to one number per cell, the inverse of its deviation, its norm is a mixture again.
    """

    def forward(
        self, levels: torch.Tensor, covariances: torch.Tensor, weights: torch.Tensor, num_memories: int
    ) -> ClassQueryMixtures:
        """Mix and normalise.

        Args:
            levels, covariances: As in `ClassQueryMemory`.
            weights: Shape (num_clip_frames, num_queries, num_levels).
            num_memories: Of how many of the first actors the mixture is wanted as it is.
        """
        mixtures = torch.einsum("fnl,lfsc->fnsc", weights[:, :num_memories].to(levels.dtype), levels)
        # A copy: parameters may be divided among processes or elsewhere as soon as this is over.
        offset = self.bias.clone()
        scales = self._inverse_deviations(weights, covariances)
        return ClassQueryMixtures(super().forward(mixtures), levels * self.weight + offset, offset, scales)

    def _inverse_deviations(self, weights: torch.Tensor, covariances: torch.Tensor) -> torch.Tensor:
        with torch.autocast(weights.device.type, enabled=False):
            weights = weights.to(covariances.dtype)
            variances = torch.einsum("fnl,fslm,fnm->fns", weights, covariances, weights)
            return (variances + self.eps).rsqrt()


class ClassQueryMixtureAttention(ClassQueryAttention):
    """Attention of each actor to its own mixture of the levels, without keys and values of its own.

    Where the key of actor n at cell s is `scale[n, s] * sum_l weight[n, l] * key[l, s]`,

        logit[n, s] = scale[n, s] * sum_l (weight[n, l] * query[n]) . key[l, s] + position_query[n] . position_key[s]

    in which the sum over levels and channels is one product. So it is with values.
    """

    def forward(
        self,
        query: torch.Tensor,
        position_query: torch.Tensor,
        keys: torch.Tensor,
        position_key: torch.Tensor,
        values: torch.Tensor,
        value_offset: torch.Tensor,
        weights: torch.Tensor,
        scales: torch.Tensor,
        attention_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """Attend.

        Args:
            query: Shape (num_clip_frames, num_queries, d_model).
            position_query: Same shape.
            keys: Shape (num_levels, num_clip_frames, num_cells, d_model).
            position_key: Shape (num_clip_frames, num_cells, d_model).
            values: As `keys`.
            value_offset: Added to the values of every actor, (d_model,).
            weights: Shape (num_clip_frames, num_queries, num_levels).
            scales: Shape (num_clip_frames, num_queries, num_cells).
            attention_mask: Added to the logits; shape (num_clip_frames, num_cells), or None.

        Returns:
            The attended values of shape (num_clip_frames, num_queries, d_model).
        """
        query, position_query, position_key = (
            split_heads(states, self.num_heads) for states in (query, position_query, position_key)
        )
        weights, scales = weights[:, None, ..., None], scales[:, None]
        # (frames, heads, queries, levels * head_dim) @ (frames, heads, levels * head_dim, cells)
        content = (weights * query[..., None, :]).flatten(-2) @ self._join_levels(keys).transpose(-2, -1)
        logits = scales * content + position_query @ position_key.transpose(-2, -1)
        logits = logits * (2 * query.shape[-1]) ** -0.5
        if attention_mask is not None:
            logits = logits + attention_mask[:, None, None]
        attention = logits.softmax(-1, dtype=torch.float32).to(query.dtype)
        attention = F.dropout(attention, self.dropout, self.training)
        # (frames, heads, queries, levels, head_dim) -> (frames, heads, queries, head_dim)
        attended = ((scales * attention) @ self._join_levels(values)).unflatten(-1, (len(keys), -1))
        offset = attention.sum(-1, keepdim=True) * value_offset.view(self.num_heads, 1, -1)
        attended = (weights * attended).sum(-2) + offset
        return self.out_proj(attended.transpose(1, 2).flatten(2))

    def _join_levels(self, states: torch.Tensor) -> torch.Tensor:
        """(levels, frames, cells, d_model) -> (frames, heads, cells, levels * head_dim)."""
        return states.unflatten(-1, (self.num_heads, -1)).permute(1, 3, 2, 0, 4).flatten(3)


class ClassQueryLocalizingLayer(nn.Module):
    """Update the actor features: attention among actors, then to an actor's own mixture of the levels.

    The keys and values of a mixture are mixtures of those of the levels, of which there are fewer than actors.
    """

    def __init__(self, config: ClassQueryConfig, is_first: bool):
        super().__init__()
        d_model = config.d_model
        self.num_heads = config.decoder_attention_heads
        self.self_attn_q_content = ClassQueryLinear(d_model, d_model)
        self.self_attn_q_position = ClassQueryLinear(d_model, d_model)
        self.self_attn_k_content = ClassQueryLinear(d_model, d_model)
        self.self_attn_k_position = ClassQueryLinear(d_model, d_model)
        self.self_attn_v = ClassQueryLinear(d_model, d_model)
        self.self_attn = ClassQueryAttention(config)
        self.self_attn_layer_norm = nn.LayerNorm(d_model)

        self.level_weights = ClassQueryLinear(d_model, config.num_feature_levels)
        self.memory_layer_norm = ClassQueryMixtureNorm(d_model)

        self.cross_attn_q_content = ClassQueryLinear(d_model, d_model)
        # Only the first layer adds positions to the content, as in Conditional DETR.
        self.cross_attn_q_position = ClassQueryLinear(d_model, d_model) if is_first else None
        self.cross_attn_q_sine = ClassQueryLinear(d_model, d_model)
        self.cross_attn_k_content = ClassQueryLinear(d_model, d_model)
        self.cross_attn_k_position = ClassQueryLinear(d_model, d_model)
        self.cross_attn_v = ClassQueryLinear(d_model, d_model)
        self.cross_attn = ClassQueryMixtureAttention(config)
        self.cross_attn_layer_norm = nn.LayerNorm(d_model)

        self.dropout = nn.Dropout(config.dropout)
        self.feed_forward = ClassQueryFeedForward(d_model, config.decoder_ffn_dim, config.dropout)

    def forward(
        self,
        actors: torch.Tensor,
        query_position: torch.Tensor,
        query_sine: torch.Tensor,
        memory: ClassQueryMemory,
        num_candidates: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Run the layer.

        Args:
            actors: Shape (num_clip_frames, num_queries, d_model).
            query_position: Same shape; encoding of the reference boxes.
            query_sine: Same shape; modulated sine encoding of the centres.
            memory: What to attend to.
            num_candidates: The actors behind so many are apart: they see themselves only and are not seen. By default
                there are none.

        Returns:
            The actor features after and before the feed-forward layer, and the memory of each candidate, of shape
            (num_clip_frames, num_candidates, num_cells, d_model).
        """
        num_candidates = actors.shape[1] if num_candidates is None else num_candidates
        actors = self._attend_to_actors(actors, query_position, num_candidates)
        weights = self.level_weights(actors).softmax(-1)
        mixtures = self.memory_layer_norm(memory.levels, memory.covariances, weights, num_candidates)
        actors = self._attend_to_memory(actors, query_position, query_sine, memory, weights, mixtures)
        return self.feed_forward(actors), actors, mixtures.memory

    def _attend_to_actors(
        self, actors: torch.Tensor, query_position: torch.Tensor, num_candidates: int
    ) -> torch.Tensor:
        query = self.self_attn_q_content(actors) + self.self_attn_q_position(query_position)
        key = self.self_attn_k_content(actors) + self.self_attn_k_position(query_position)
        mask = apart_mask(num_candidates, query) if num_candidates < actors.shape[1] else None
        update, _ = self.self_attn(query, key, self.self_attn_v(actors), mask)
        return self.self_attn_layer_norm(actors + self.dropout(update))

    def _attend_to_memory(
        self,
        actors: torch.Tensor,
        query_position: torch.Tensor,
        query_sine: torch.Tensor,
        memory: ClassQueryMemory,
        weights: torch.Tensor,
        mixtures: ClassQueryMixtures,
    ) -> torch.Tensor:
        content, position = self.cross_attn_q_content(actors), self.cross_attn_q_sine(query_sine)
        if self.cross_attn_q_position is not None:
            # Queries and keys are content + position here: content . content + content . position.
            content = content + self.cross_attn_q_position(query_position)
            position = position + content
        # What the offset of a key adds to the logits is the same for all cells.
        key_offset, value_offset = self.cross_attn_k_content(mixtures.offset), self.cross_attn_v(mixtures.offset)
        update = self.cross_attn(
            content,
            position,
            self.cross_attn_k_content(mixtures.levels) - key_offset,
            self.cross_attn_k_position(memory.position),
            self.cross_attn_v(mixtures.levels) - value_offset,
            value_offset,
            weights.to(content.dtype),
            mixtures.scales.to(content.dtype),
            memory.attention_mask,
        )
        return self.cross_attn_layer_norm(actors + self.dropout(update))


class ClassQueryConvBlock(GradientCheckpointingLayer):
    """Residual block: 3x3 convolution, layer norm and a pointwise MLP of four times the width."""

    def __init__(self, d_model: int):
        super().__init__()
        self.conv = nn.Conv2d(d_model, d_model, kernel_size=3, padding=1)
        self.layer_norm = nn.LayerNorm(d_model, eps=1e-6)
        self.fc1 = ClassQueryLinear(d_model, 4 * d_model)
        self.fc2 = ClassQueryLinear(4 * d_model, d_model)
        self.activation = ACT2FN["gelu"]

    def forward(self, features: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Transform (rows, h, w, d_model); the convolution sees zeros where the mask (rows, h, w) is false."""
        visible = features if mask is None else features * mask[..., None]
        # The permutation is PyTorch's channels-last layout, in which a convolution reads and writes without copies.
        update = self.conv(visible.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return in_pieces(self._add_mlp, features, update)

    def _add_mlp(self, features: torch.Tensor, update: torch.Tensor) -> torch.Tensor:
        return features + self.fc2(self.activation(self.fc1(self.layer_norm(update))))


class ClassQueryClassAttention(ClassQueryAttention):
    """Attention of the class queries of each actor to its memory, by content and by position.

    The position of the query is that of the actor, so what it adds to the logits is the same for all classes, and is
    computed once per actor. Interleaved heads add it to the content's logits, as a mask is added. In the released
    layout, where heads split the concatenation of content and position, the first half of them sees only content and
    the second only positions: for all classes, these attend to the same cells.
    """

    def __init__(self, config: ClassQueryConfig):
        super().__init__(config)
        self.interleave = config.class_attention_heads == "interleaved"

    def forward(
        self,
        query: torch.Tensor,
        position_query: torch.Tensor,
        key: torch.Tensor,
        position_key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        output_attentions: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend.

        Args:
            query: Shape (num_clip_frames * num_queries, num_labels, d_model).
            position_query: Shape (num_clip_frames, num_queries, d_model).
            key: Shape (num_clip_frames * num_queries, num_cells, d_model).
            position_key: Shape (num_clip_frames, num_cells, d_model).
            value: As `key`.
            attention_mask: Added to the logits; shape (num_clip_frames, num_cells), or None.
            output_attentions: Whether to return the attention.

        Returns:
            The attended values, shaped as `query`, and the attention of shape (num_clip_frames * num_queries, heads,
            num_labels, num_cells) or None.
        """
        num_heads = self.num_heads if self.interleave else self.num_heads // 2
        width = 2 * query.shape[-1] // self.num_heads
        query, key, position_query, position_key = (
            split_heads(states, num_heads) for states in (query, key, position_query, position_key)
        )
        value = split_heads(value, self.num_heads)
        position_logits = position_query @ position_key.transpose(-2, -1) * width**-0.5
        if attention_mask is not None:
            position_logits = position_logits + attention_mask[:, None, None]
            attention_mask = attention_mask.repeat_interleave(position_query.shape[2], dim=0)[:, None, None]
        # (frames, heads, queries, cells) -> (frames * queries, heads, 1, cells)
        position_logits = position_logits.transpose(1, 2).flatten(0, 1)[:, :, None]
        if self.interleave:
            attended, attention = self.attend(query, key, value, position_logits, width, output_attentions)
            return self.out_proj(attended.flatten(2)), attention
        content_value, position_value = value.chunk(2, dim=1)
        by_content, attention = self.attend(query, key, content_value, attention_mask, width, output_attentions)
        position_attention = position_logits.softmax(-1, dtype=torch.float32).to(value.dtype)
        by_position = self._drop_per_class(position_attention, query.shape[2]) @ position_value
        by_position = by_position.transpose(1, 2).expand_as(by_content)
        if attention is not None:
            attention = torch.cat((attention, position_attention.expand_as(attention)), dim=1)
        return self.out_proj(torch.cat((by_content, by_position), dim=2).flatten(2)), attention

    def _drop_per_class(self, attention: torch.Tensor, num_labels: int) -> torch.Tensor:
        """Dropout with draws of its own for each class, from the attention (rows, heads, 1, cells) that they share."""
        if not self.training or self.dropout == 0:
            return attention
        return F.dropout(attention.expand(-1, -1, num_labels, -1), self.dropout)


class ClassQueryClassifyingLayer(nn.Module):
    """Update the class features of each actor: every class query attends to the actor's memory by itself."""

    num_conv_blocks = 3

    def __init__(self, config: ClassQueryConfig):
        super().__init__()
        d_model = config.d_model
        self.mask_padding = config.padding == "masked"
        self.class_groups = config.class_groups
        self.config = config
        self.actor_feed_forward = ClassQueryFeedForward(d_model, config.decoder_ffn_dim, config.dropout)
        self.fusion_layer_norm = nn.LayerNorm(d_model)
        # Shared on purpose: the released network applies one block three times.
        num_modules = 1 if config.class_convolutions == "released" else self.num_conv_blocks
        self.conv_blocks = nn.ModuleList(ClassQueryConvBlock(d_model) for _ in range(num_modules))

        self.self_attn = ClassQueryAttention(config)
        self.self_attn_layer_norm = nn.LayerNorm(d_model)
        self.cross_attn_q_sine = ClassQueryLinear(d_model, d_model)
        self.cross_attn_k = ClassQueryLinear(d_model, d_model)
        self.cross_attn_v = ClassQueryLinear(d_model, d_model)
        self.cross_attn = ClassQueryClassAttention(config)
        self.dropout = nn.Dropout(config.dropout)
        self.feed_forward = ClassQueryFeedForward(d_model, config.decoder_ffn_dim, config.dropout)

    def forward(
        self,
        class_queries: torch.Tensor,
        actors: torch.Tensor,
        query_sine: torch.Tensor,
        actor_memory: torch.Tensor,
        memory: ClassQueryMemory,
        output_attentions: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Run the layer.

        Args:
            class_queries: Shape (num_clip_frames * num_queries, num_labels, d_model); one row if they are still the
                same for all actors.
            actors: Shape (num_clip_frames, num_queries, d_model); receives no gradient from here.
            query_sine: Same shape; modulated sine encoding of the centres.
            actor_memory: Shape (num_clip_frames, num_queries, num_cells, d_model).
            memory: That of all actors.
            output_attentions: Whether to return the attention.

        Returns:
            The class features of shape (num_clip_frames * num_queries, num_labels, d_model), and the attention of
            shape (num_clip_frames * num_queries, heads, num_labels, num_cells) or None.
        """
        # The release lets classes look at padding.
        attention_mask = memory.attention_mask if self.mask_padding else None
        context = self._fuse(actors, actor_memory, memory.size, attention_mask)
        # Values are the memory before fusion, and there is no residual from the class query: a class speaks only
        # through where it looks.
        what_is_seen = (
            self.cross_attn_q_sine(query_sine),
            self.cross_attn_k(context),
            memory.position,
            self.cross_attn_v(actor_memory.flatten(0, 1)),
            attention_mask,
            output_attentions,
        )
        # Each class attends by itself, so that some at a time give what all of them do.
        num_labels, num_rows = class_queries.shape[1], context.shape[0]
        chunk = self.config.class_chunk or num_labels
        features, attentions = [], []
        for first in range(0, num_labels, chunk):
            of_classes = slice(first, first + chunk)
            of_chunk = self._attend_to_classes(class_queries, num_rows, of_classes)
            of_chunk, attention = self.cross_attn(of_chunk, *what_is_seen)
            features.append(self.feed_forward(self.dropout(of_chunk)))
            attentions.append(attention)
        if len(features) == 1:
            return features[0], attentions[0]
        return torch.cat(features, dim=1), torch.cat(attentions, dim=2) if output_attentions else None

    def _attend_to_classes(
        self, class_queries: torch.Tensor, num_rows: int, of_classes: slice = slice(None)
    ) -> torch.Tensor:
        """Attention of some classes of an actor to all of them, the same for all actors if queries and draws are."""
        if self.training and self.dropout.p > 0:
            class_queries = class_queries.expand(num_rows, -1, -1)
        group_mask = class_group_mask(self.class_groups, class_queries)
        if group_mask is not None:
            group_mask = group_mask[of_classes]
        attending = class_queries[:, of_classes]
        update, _ = self.self_attn(attending, class_queries, class_queries, group_mask)
        return self.self_attn_layer_norm(attending + self.dropout(update)).expand(num_rows, -1, -1)

    def _fuse(
        self,
        actors: torch.Tensor,
        actor_memory: torch.Tensor,
        memory_size: tuple[int, int],
        attention_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """Add each actor to its memory and mix in space: (num_clip_frames * num_queries, num_cells, d_model)."""
        actors = self.actor_feed_forward(actors.detach())
        context = self.fusion_layer_norm(actor_memory + actors[:, :, None])
        context = context.flatten(0, 1).unflatten(1, memory_size)
        mask = None
        if attention_mask is not None:
            mask = (attention_mask == 0).repeat_interleave(actors.shape[1], dim=0).unflatten(1, memory_size)
        for index in range(self.num_conv_blocks):
            context = self.conv_blocks[index % len(self.conv_blocks)](context, mask)
        return context.flatten(1, 2)


class ClassQueryDecoder(nn.Module):
    """Alternate localizing and classifying layers, refining the boxes in between."""

    smallest_box_size = 0.01

    def __init__(self, config: ClassQueryConfig):
        super().__init__()
        self.config = config
        d_model = config.d_model
        is_learned = config.class_queries == "learned"
        self.class_queries = nn.Parameter(torch.empty(config.num_labels, d_model)) if is_learned else None
        self.class_words = None if is_learned else ClassQueryWords(config)
        self.text_queries = None if is_learned else ClassQueryTextVectors(config)
        self.localizing_layers = nn.ModuleList(
            ClassQueryLocalizingLayer(config, is_first=index == 0) for index in range(config.decoder_layers)
        )
        self.classifying_layers = nn.ModuleList(
            ClassQueryClassifyingLayer(config) for _ in range(config.decoder_layers)
        )
        self.actor_layer_norm = nn.LayerNorm(d_model)
        self.class_layer_norm = nn.LayerNorm(d_model)
        self.query_scale = ClassQueryMLP(d_model, d_model, d_model)
        self.box_position_head = ClassQueryMLP(2 * d_model, d_model, d_model)
        self.box_size_head = ClassQueryMLP(d_model, d_model, 2)
        self.box_head = ClassQueryMLP(d_model, d_model, d_model, 4)

    def reset_parameters(self) -> None:
        """Initialise for training from scratch."""
        _reset_matrices(self)
        for parameter in self.box_head.layers[-1].parameters():
            init.zeros_(parameter)
        if self.class_words is not None:
            self.class_words.reset_parameters()
            self.text_queries.reset_parameters()

    def queries_of_classes(self) -> torch.Tensor:
        """What every actor's class queries start from: (num_labels, d_model)."""
        return self.class_queries if self.class_words is None else self.text_queries(self.class_words())

    def forward(
        self,
        reference_boxes: torch.Tensor,
        memory: ClassQueryMemory,
        output_attentions: bool = False,
        noised_boxes: torch.Tensor | None = None,
    ) -> ClassQueryDecoderOutput:
        """Decode.

        Args:
            reference_boxes: Shape (num_clip_frames, num_queries, 4), (cx, cy, w, h) in [0, 1].
            memory: What to attend to.
            output_attentions: Whether to return the class attentions.
            noised_boxes: Boxes to localize as well, but apart: (num_clip_frames, num_boxes, 4).
        """
        num_queries = reference_boxes.shape[1]
        if noised_boxes is not None:
            reference_boxes = torch.cat((reference_boxes, noised_boxes.to(reference_boxes.dtype)), dim=1)
        actors = torch.zeros_like(memory.levels[0, :, :1]).expand(-1, reference_boxes.shape[1], -1)
        classes = self.queries_of_classes()[None]
        all_actors, all_classes, all_boxes, all_attentions = [], [], [], []
        for index, (localize, classify) in enumerate(
            zip(self.localizing_layers, self.classifying_layers, strict=True)
        ):
            all_boxes.append(reference_boxes)
            anchors = reference_boxes.detach()
            query_position, query_sine = self._encode_boxes(anchors, actors, is_first=index == 0)
            actors, localized, actor_memory = localize(actors, query_position, query_sine, memory, num_queries)
            classes, attention = classify(
                classes,
                localized[:, :num_queries],
                query_sine[:, :num_queries],
                actor_memory,
                memory,
                output_attentions,
            )
            # Refined on the raw features; what is predicted is read from the normalised ones, as in DAB-DETR.
            reference_boxes = self._refine_boxes(actors, anchors)
            all_actors.append(self.actor_layer_norm(actors))
            all_classes.append(self.class_layer_norm(classes))
            all_attentions.append(attention)
        all_actors, all_boxes = torch.stack(all_actors), torch.stack(all_boxes)
        # The box that a layer starts from keeps its gradient here, though not as anchor: each layer is also supervised
        # by what the next makes of its box (look forward twice, DINO, arXiv 2203.03605).
        pred_boxes = self._refine_boxes(all_actors, all_boxes)
        return ClassQueryDecoderOutput(
            actor_hidden_states=all_actors[:, :, :num_queries],
            class_hidden_states=torch.stack(all_classes),
            reference_boxes=all_boxes[:, :, :num_queries],
            pred_boxes=pred_boxes[:, :, :num_queries],
            denoised_boxes=None if noised_boxes is None else pred_boxes[:, :, num_queries:],
            class_attentions=tuple(all_attentions) if output_attentions else None,
        )

    def _refine_boxes(self, features: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        """Move boxes (..., 4) by what the box head reads from features (..., d_model)."""
        return (without_autocast(self.box_head, features).to(boxes.dtype) + inverse_sigmoid(boxes)).sigmoid()

    def _encode_boxes(
        self, boxes: torch.Tensor, actors: torch.Tensor, is_first: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Position query and modulated sine query of each actor, (num_clip_frames, num_queries, d_model) each."""
        d_model = self.config.d_model
        sine = box_position_embedding(boxes, self.config).to(actors.dtype)
        query_position = self.box_position_head(sine)
        query_sine = sine[..., :d_model]
        if not is_first:
            query_sine = query_sine * self.query_scale(actors)
        # Widen the attention with the box: the row part by its height, the column part by its width.
        size = self.box_size_head(actors).sigmoid().to(boxes.dtype)
        box_size = boxes[..., 2:]
        if self.config.box_modulation == "clamped":
            box_size = box_size.clamp(min=self.smallest_box_size)
        scale = (size / box_size).flip(-1).repeat_interleave(d_model // 2, dim=-1)
        return query_position, query_sine * scale.to(actors.dtype)


# Models


# Bytes; where PyTorch's allocator on CPU places tensors.
_ALIGNMENT = 64


class ClassQueryPreTrainedModel(PreTrainedModel):
    """Weight initialisation and what transformers needs to know about the architecture."""

    config: ClassQueryConfig
    config_class = ClassQueryConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ("video",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = [
        "ClassQueryViTBlock",
        "ClassQueryCSNBlock",
        "VideoMAELayer",
        "VJEPA2Layer",
        "ClassQueryEncoderLayer",
        "ClassQueryLocalizingLayer",
        "ClassQueryClassifyingLayer",
    ]

    def post_init(self) -> None:
        """Finish the model as transformers does."""
        super().post_init()
        # Accelerate looks for each of them in the model, which has the layers of one backbone only.
        self._no_split_modules &= {type(module).__name__ for module in self.modules()}

    def get_input_embeddings(self) -> None:
        """Nothing: there is no table of tokens, which Accelerate would divide by itself."""

    @classmethod
    def register_for_auto_class(cls, auto_class=None) -> None:
        """Do nothing: the code is saved with the configuration."""

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """Load as transformers does, to a model that computes bit for bit what the saved one did.

        Tensors that are mapped from a file begin at any multiple of eight bytes, and on CPU that alone makes kernels
        sum in another order; here they are moved to where PyTorch would have put them. So are those that a
        `device_map` leaves on disk, whenever they are needed.

        Raises:
            NotFiniteError: If weights are not finite.
        """
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = _aligned(tensor.data)
        _align_offloaded(model)
        _check_finite(model)
        return loaded

    def save_pretrained(self, *args, save_original_format: bool = False, **kwargs) -> None:
        """Save as transformers does, but with the names that the weights have here.

        For VideoMAE it would go back to names of earlier versions, which the Trainer does not know when it resumes.
        """
        super().save_pretrained(*args, save_original_format=save_original_format, **kwargs)

    def _upload_modified_files(self, working_dir: str | os.PathLike, repo_id: str, *args, **kwargs):
        """Upload as transformers does, with a card that says what is known instead of its template."""
        card = make_model_card(self.config, repo_id, num_parameters=self.num_parameters())
        replace_template(working_dir, card)
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)

    def train(self, mode: bool = True):
        """Set the training mode, but leave in evaluation mode what has no parameter to be trained.

        Only so does a frozen part compute what it did before: batch norms would go on with their statistics, and
        dropout would train the rest on features that it never sees in use.
        """
        super().train(mode)
        if mode:
            evaluate_frozen_parts(self)
        return self

    def _initialize_weights(self, module: nn.Module, *args, **kwargs) -> None:
        """Initialise what of a module was not loaded.

        Of a model that is not its own, transformers takes a module for loaded if the tensors of its own were, though
        it is its parent that knows how to begin: of an encoder with more layers than the file, the new ones.
        """
        super()._initialize_weights(module)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ClassQueryEncoder | ClassQueryDecoder):
            module.reset_parameters()
        elif hasattr(module, "reset_position_table"):
            module.reset_position_table()
        elif isinstance(module, nn.LayerNorm):
            # By its name transformers knows a plain one only.
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, ClassQueryDoubling) and module.is_empty:
            module.reset_parameters()
        elif isinstance(module, ClassQueryModel):
            module.reset_reference_boxes()
        elif isinstance(module, ClassQueryForVideoActionDetection) and module.class_readout_bias is not None:
            # A prior of 5 %, so that rare positives are not drowned at first.
            init.constant_(module.class_readout_bias, -math.log(19))
            if module.text_readout is not None:
                module.text_readout.reset_parameters()
            else:
                init.normal_(module.class_readout, std=module.config.d_model**-0.5)


def evaluate_frozen_parts(module: nn.Module) -> None:
    """Put each part that has parameters, but none to be trained, into evaluation mode, with all that it holds."""
    if any(parameter.requires_grad for parameter in module.parameters()):
        for part in module.children():
            evaluate_frozen_parts(part)
    elif next(module.parameters(), None) is not None:
        module.eval()


def _aligned(tensor: torch.Tensor) -> torch.Tensor:
    is_misplaced = tensor.device.type == "cpu" and tensor.data_ptr() % _ALIGNMENT
    return tensor.clone() if is_misplaced else tensor


class _AlignedWeights(Mapping):
    """Weights that are read when they are needed, moved to where PyTorch would put them."""

    def __init__(self, weights: Mapping[str, torch.Tensor]):
        self.weights = weights

    def __getitem__(self, name: str) -> torch.Tensor:
        return _aligned(self.weights[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)


def _align_offloaded(model: nn.Module) -> None:
    """Change where the hooks of Accelerate, if there are any, take weights from."""
    for module in model.modules():
        hook = getattr(module, "_hf_hook", None)
        for one in getattr(hook, "hooks", [hook]):
            if getattr(one, "weights_map", None) is not None:
                one.weights_map = _AlignedWeights(one.weights_map)


def _check_finite(model: nn.Module) -> None:
    """Refuse weights that are not finite; what is offloaded is not looked at."""
    tensors = {
        name: tensor
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
        if tensor.is_floating_point() and tensor.element_size() > 1 and not tensor.is_meta
    }
    broken = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if broken:
        raise NotFiniteError(
            f"{len(broken)} of {len(tensors)} tensors of the checkpoint are not finite, as {broken[0]}: "
            "it was saved after training diverged, or is damaged; take an earlier one"
        )


def _reset_matrices(module: nn.Module) -> None:
    """Xavier-uniform for everything with two or more dimensions."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            init.xavier_uniform_(parameter)


class ClassQueryModel(ClassQueryPreTrainedModel):
    """Backbone, encoder and decoder without the heads."""

    def __init__(self, config: ClassQueryConfig):
        super().__init__(config)
        self.backbone, self.feature_pyramid = _make_backbone(config)
        self.encoder = ClassQueryEncoder(config)
        self.decoder = ClassQueryDecoder(config)
        # Learned start of the boxes, before the sigmoid.
        self.reference_boxes = nn.Parameter(torch.empty(config.num_output_frames, config.num_queries, 4))
        self._plans = ClipPlans()
        self.post_init()

    def reset_reference_boxes(self) -> None:
        """Lay out the boxes that candidates start from."""
        if self.config.initial_boxes == "random":
            init.normal_(self.reference_boxes)
        else:
            boxes = grid_boxes(self.config.num_queries).to(self.reference_boxes)
            init.copy_(self.reference_boxes, torch.logit(boxes).expand_as(self.reference_boxes))

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        noised_boxes: torch.Tensor | None = None,
        supervised_frames: torch.Tensor | None = None,
    ) -> ClassQueryModelOutput:
        """Encode clips and decode actor candidates and their classes.

        Args:
            pixel_values: Shape (batch, num_frames, 3, height, width), normalised as by [`ClassQueryVideoProcessor`].
            pixel_mask: Shape (batch, height, width), 1 on real pixels and 0 on padding; all real by default.
            output_attentions: Whether to return the class attentions.
            output_hidden_states: Whether to return the states of the encoder.
            noised_boxes: Boxes to localize as well, but apart, as of `ActionTargets.noised_boxes`.
            supervised_frames: Output frames to decode, (batch, num_supervised_frames); by default all. Those of the
                outputs are these.
        """
        self._validate(pixel_values, pixel_mask)
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        batch_size, num_frames = pixel_values.shape[:2]
        features, padding = self.encode_frames(pixel_values, pixel_mask)
        plan = self.plan(features, num_frames, padding, every_cell=output_hidden_states)
        encoded, encodings, hidden_states = self.encoder(features, plan, output_hidden_states)
        levels = self.resample(encoded, plan)
        of_frames = self.encodings_of_frames(encodings[-2], plan, batch_size)
        mask = self.memory_mask(plan, encoded.dtype)
        boxes = self._anchors(num_frames).sigmoid().repeat(batch_size, 1, 1)
        if supervised_frames is not None:
            rows = self._rows_of(supervised_frames, batch_size, len(boxes), levels.device)
            levels, of_frames, boxes = levels[:, rows], of_frames[rows], boxes[rows]
            mask = None if mask is None else mask[rows]
        memory = ClassQueryMemory.of_levels(levels, of_frames, plan.shapes[-2][1:], mask)
        decoded = self.decoder(boxes, memory, output_attentions, noised_boxes)
        clips_and_frames = (batch_size, -1)
        attentions = decoded.class_attentions
        return ClassQueryModelOutput(
            actor_hidden_states=decoded.actor_hidden_states.unflatten(1, clips_and_frames),
            class_hidden_states=decoded.class_hidden_states.unflatten(1, (*clips_and_frames, self.config.num_queries)),
            reference_boxes=decoded.reference_boxes.unflatten(1, clips_and_frames),
            pred_boxes=decoded.pred_boxes.unflatten(1, clips_and_frames),
            denoised_boxes=decoded.denoised_boxes,
            encoder_last_hidden_state=encoded if output_hidden_states else None,
            hidden_states=hidden_states,
            class_attentions=self._class_attentions(attentions, batch_size, plan.shapes[-2]) if attentions else None,
        )

    def _rows_of(
        self, frames: torch.Tensor, batch_size: int, num_clip_frames: int, device: torch.device
    ) -> torch.Tensor:
        """Numbers among the output frames of all clips: (batch, n) -> (batch * n,)."""
        if frames.ndim != 2 or len(frames) != batch_size:
            raise ValueError(
                f"`supervised_frames` must have shape ({batch_size}, num_supervised_frames), got {tuple(frames.shape)}"
            )
        num_frames = num_clip_frames // batch_size
        # Those on a device are not waited for.
        if frames.device.type == "cpu" and not torch.compiler.is_compiling():
            _require_frames(frames, num_frames)
        starts = torch.arange(0, num_clip_frames, num_frames, device=device)
        return (frames.to(device, non_blocking=True) + starts[:, None]).flatten()

    def _validate(self, pixel_values: torch.Tensor, pixel_mask: torch.Tensor | None) -> None:
        if self.decoder.class_words is not None:
            self.decoder.class_words.require_words()
        expected = f"(batch, {self.config.num_frames}, 3, height, width)"
        if pixel_values.ndim != 5 or pixel_values.shape[2] != 3:
            raise ValueError(f"`pixel_values` must have shape {expected}, got {tuple(pixel_values.shape)}")
        self._validate_num_frames(pixel_values.shape[1])
        patch_size = getattr(self.config.backbone_config, "patch_size", 16)
        smallest = 2 * (patch_size if isinstance(patch_size, int) else max(patch_size))
        if min(pixel_values.shape[-2:]) < smallest:
            raise ValueError(f"frames must be at least {smallest}x{smallest} pixels, got {pixel_values.shape[-2:]}")
        size = (pixel_values.shape[0], *pixel_values.shape[-2:])
        if pixel_mask is not None and tuple(pixel_mask.shape) != size:
            raise ValueError(f"`pixel_mask` must have shape {size}, got {tuple(pixel_mask.shape)}")

    def _validate_num_frames(self, num_frames: int) -> None:
        backbone_config = self.config.backbone_config
        only_its_own = getattr(backbone_config, "position_table", None) == "released"
        if only_its_own and num_frames != self.config.num_frames:
            raise ValueError(
                f"`pixel_values` must hold {self.config.num_frames} frames (`config.num_frames`), got {num_frames}: "
                "sample clips of that many frames, or train with `position_table='factorized'`, which takes others"
            )
        tubelet_size = getattr(backbone_config, "tubelet_size", 1)
        if num_frames % tubelet_size:
            raise ValueError(f"the number of frames must be a multiple of {tubelet_size}, got {num_frames}")

    def encode_frames(
        self, pixel_values: torch.Tensor, pixel_mask: torch.Tensor | None
    ) -> tuple[list[torch.Tensor], Padding | None]:
        """Run the backbone and the feature pyramid.

        Args:
            pixel_values, pixel_mask: As in `forward`.

        Returns:
            Per level, from fine to coarse, a map (batch, d_model, t, h, w); and where they are padded, if they may be.
        """
        # A mask on the host is read without waiting.
        is_known = pixel_mask is not None and pixel_mask.device.type == "cpu" and not torch.compiler.is_compiling()
        if pixel_mask is None or (is_known and bool(pixel_mask.all())):
            return self.feature_pyramid(self.backbone(pixel_values)), None
        if self.config.padding == "masked":
            return self._encode_size_by_size(pixel_values, pixel_mask)
        features = self.feature_pyramid(self.backbone(pixel_values))
        pixel_mask = pixel_mask[:, None].float()
        masks = [F.interpolate(pixel_mask, size=level.shape[-2:])[:, 0] > 0.5 for level in features]
        return features, Padding(masks)

    def _encode_size_by_size(
        self, pixel_values: torch.Tensor, pixel_mask: torch.Tensor
    ) -> tuple[list[torch.Tensor], Padding | None]:
        """Encode clips of each size without their padding, then pad their levels."""
        clips_of_size = defaultdict(list)
        for clip, size in enumerate(_real_sizes(pixel_mask)):
            clips_of_size[size].append(clip)
        levels_of_clip = {}
        for (height, width), clips in clips_of_size.items():
            of_size = torch.stack([pixel_values[clip, ..., :height, :width] for clip in clips])
            levels = self.feature_pyramid(self.backbone(of_size))
            if len(clips_of_size) == 1:
                return levels, None
            levels_of_clip |= {clip: maps for clip, *maps in zip(clips, *levels, strict=True)}
        levels = list(zip(*(levels_of_clip[clip] for clip in range(len(pixel_values))), strict=True))
        features, masks = zip(*map(_pad_level, levels), strict=True)
        sizes = tuple(tuple(tuple(single.shape[-2:]) for single in maps) for maps in levels)
        return list(features), Padding(list(masks), sizes)

    def plan(
        self, features: list[torch.Tensor], num_frames: int, padding: Padding | None = None, every_cell: bool = False
    ) -> ClipPlan:
        """What is known of clips from the size of their features.

        Args:
            features: One map (batch, d_model, t, h, w) per level.
            num_frames: Frames of a clip.
            padding: Where the maps are padded, None if they are not.
            every_cell: Whether the last encoder layer computes all cells, not only those that are read.
        """
        shapes = [tuple(level.shape[2:]) for level in features]
        return self._plans.find(self.config, shapes, num_frames, features[0], padding, every_cell)

    def _anchors(self, num_frames: int) -> torch.Tensor:
        """Boxes to start from in each decoded frame, before the sigmoid: (num_output_frames, num_queries, 4)."""
        if self.config.output_frames == "keyframe" or num_frames == self.config.num_frames:
            return self.reference_boxes
        return self.reference_boxes[[f * self.config.num_frames // num_frames for f in range(num_frames)]]

    def resample(self, hidden_states: torch.Tensor, plan: ClipPlan) -> torch.Tensor:
        """Bring all levels to the size of the last but one and to the decoded frames.

        Args:
            hidden_states: States of the read cells, (batch, num_read_cells, d_model).
            plan: For clips of that size.

        Returns:
            Shape (num_levels, num_clip_frames, h * w, d_model).
        """
        num_cells = [math.prod([axis.shape[-1] for axis in level]) for level in plan.axis_weights]
        levels = torch.stack(
            [
                interpolate(states, level)
                for states, level in zip(hidden_states.split(num_cells, dim=1), plan.axis_weights, strict=True)
            ]
        )
        if plan.is_transposed:
            levels = levels.transpose(3, 4)
        # (levels, batch, frames, h, w, d_model) -> (levels, batch * frames, h * w, d_model)
        return levels.flatten(1, 2).flatten(2, 3)

    def encodings_of_frames(self, encodings: torch.Tensor, plan: ClipPlan, batch_size: int) -> torch.Tensor:
        """Pick those of each decoded frame: (batch or 1, t, h, w, d_model) -> (num_clip_frames, h * w, d_model)."""
        of_frames = encodings[:, plan.slot_index].flatten(2, 3)
        return of_frames.expand(batch_size, -1, -1, -1).flatten(0, 1)

    def memory_mask(self, plan: ClipPlan, dtype: torch.dtype) -> torch.Tensor | None:
        """What to add to attention logits, (num_clip_frames, h * w), lowest value on padding; None without any."""
        if plan.level_masks is None:
            return None
        padding = ~plan.level_masks[-2].flatten(1).repeat_interleave(len(plan.slot_index), dim=0)
        return padding.to(dtype) * torch.finfo(dtype).min

    def _class_attentions(
        self, attentions: Sequence[torch.Tensor], batch_size: int, shape: tuple[int, int, int]
    ) -> tuple[torch.Tensor, ...]:
        """(num_clip_frames * queries, heads, labels, cells) -> (batch, frames, queries, labels, heads, h, w)."""
        clips_frames_queries = (batch_size, -1, self.config.num_queries)
        return tuple(
            attention.unflatten(0, clips_frames_queries).transpose(3, 4).unflatten(-1, shape[1:])
            for attention in attentions
        )


def _require_frames(frames: torch.Tensor, num_frames: int) -> None:
    """Refuse numbers of other frames than a clip has: they would be those of another clip."""
    if frames.is_floating_point() or frames.dtype == torch.bool:
        raise ValueError(f"`supervised_frames` must be numbers of frames, whole ones, got {frames.dtype}")
    if frames.numel() and not 0 <= frames.min() <= frames.max() < num_frames:
        raise ValueError(
            f"`supervised_frames` must be from 0 to {num_frames - 1}, the output frames of a clip, got "
            f"{int(frames.min())} to {int(frames.max())}"
        )


def _make_backbone(config: ClassQueryConfig) -> tuple[nn.Module, nn.Module]:
    """The backbone and what turns its output into feature levels."""
    backbone_config = config.backbone_config
    if backbone_config.model_type == "classquery_csn":
        backbone = ClassQueryCSNBackbone(backbone_config)
        return backbone, ClassQueryInputProjection(backbone.out_channels[1:], config.d_model)
    if backbone_config.model_type in TOKEN_BACKBONES:
        # Its layers ask their own configuration, which transformers fills in for whole models only.
        backbone_config._attn_implementation = backbone_config._attn_implementation or config._attn_implementation
        backbone = TOKEN_BACKBONES[backbone_config.model_type](backbone_config)
    else:
        backbone = ClassQueryViTBackbone(backbone_config, config.num_frames)
    return backbone, ClassQueryFeaturePyramid(backbone_config.hidden_size, config.d_model, config.num_feature_levels)


# Sizes that were read off masks, while these live.
_SIZES = WeakIdKeyDictionary()


def _real_sizes(pixel_mask: torch.Tensor) -> list[tuple[int, int]]:
    """Height and width of the real part of each mask (batch, height, width); a mask is read once."""
    if pixel_mask.is_inference():
        return _read_sizes(pixel_mask)
    version, sizes = _SIZES.get(pixel_mask, (None, None))
    if version != pixel_mask._version:
        sizes = _read_sizes(pixel_mask)
        _SIZES[pixel_mask] = pixel_mask._version, sizes
    return sizes


def _read_sizes(pixel_mask: torch.Tensor) -> list[tuple[int, int]]:
    real = pixel_mask.ne(0)
    counts = torch.stack((real[:, :, 0].sum(1), real[:, 0].sum(1), real.sum((1, 2))), dim=1).tolist()
    if any(height * width != num_real for height, width, num_real in counts):
        raise ValueError("`pixel_mask` must be 1 on a rectangle in the upper left corner: pad below and to the right")
    sizes = [(height, width) for height, width, _ in counts]
    if (0, 0) in sizes:
        raise ValueError(f"`pixel_mask` of clip {sizes.index((0, 0))} is all zero: it must be 1 on the real pixels")
    return sizes


def _pad_level(maps: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad maps (d_model, t, h, w) to one size: (batch, d_model, t, h, w), and a mask (batch, h, w) of the maps."""
    height, width = (max(single.shape[axis] for single in maps) for axis in (-2, -1))
    paddings = [(0, width - single.shape[-1], 0, height - single.shape[-2]) for single in maps]
    masks = [single.new_ones(single.shape[-2:], dtype=torch.bool) for single in maps]
    padded, masks = ([F.pad(*pair) for pair in zip(tensors, paddings, strict=True)] for tensors in (maps, masks))
    return torch.stack(padded), torch.stack(masks)


class ClassQueryForVideoActionDetection(ClassQueryPreTrainedModel):
    r"""
    The detector: boxes of actors and, for each, a score per action class.

    Example:

    ```python
    >>> import torch
    >>> from classquery import ClassQueryConfig, ClassQueryForVideoActionDetection

    >>> config = ClassQueryConfig(
    ...     num_frames=8, num_labels=3, num_queries=5, d_model=64, encoder_layers=1, decoder_layers=2,
    ...     backbone_config={"model_type": "classquery_vit", "hidden_size": 48, "num_hidden_layers": 2,
    ...                      "num_attention_heads": 3, "intermediate_size": 96},
    ... )
    >>> model = ClassQueryForVideoActionDetection(config).eval()
    >>> outputs = model(torch.zeros(2, 8, 3, 64, 96))
    >>> outputs.logits.shape, outputs.pred_boxes.shape
    (torch.Size([2, 1, 5, 3]), torch.Size([2, 1, 5, 4]))

    ```
    """

    def __init__(self, config: ClassQueryConfig):
        super().__init__(config)
        self.model = ClassQueryModel(config)
        self.actor_head = ClassQueryLinear(config.d_model, 3)
        self.classifier_dropout = nn.Dropout(config.classifier_dropout)
        per_class = config.class_readout == "per_class"
        of_text = config.class_queries == "text"
        num_learned = 1 if of_text else config.num_labels
        is_learned = per_class and not of_text
        self.class_readout = nn.Parameter(torch.empty(config.num_labels, config.d_model)) if is_learned else None
        # Words have no bias of their own: it is one for all classes.
        self.class_readout_bias = nn.Parameter(torch.empty(num_learned)) if per_class else None
        self.text_readout = ClassQueryTextVectors(config) if per_class and of_text else None
        # Otherwise transformers takes the loss of language models.
        self.loss_function = action_detection_loss
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor | None = None,
        labels: list[dict[str, torch.Tensor]] | None = None,
        loss_divisors: dict[str, torch.Tensor] | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> ClassQueryDetectionOutput:
        """Detect actions.

        Args:
            pixel_values: Shape (batch, num_frames, 3, height, width), normalised as by [`ClassQueryVideoProcessor`].
            pixel_mask: Shape (batch, height, width), 1 on real pixels and 0 on padding; all real by default.
            labels: For the loss, one dict per clip (see [`action_detection_loss`]).
            loss_divisors: What the loss terms are divided by, if not what is counted in `labels`.
            output_attentions: Whether to return the class attentions.
            output_hidden_states: Whether to return the states of the encoder.
        """
        noised_boxes = None
        supervised_frames = None if labels is None else supervised_frames_of(labels)
        if labels is not None and self.training and self.config.denoising_groups:
            frames = self.config.output_frame_indices(pixel_values.shape[1])
            num_frames = len(frames if supervised_frames is None else supervised_frames[0])
            labels = targets_of(labels, len(pixel_values), num_frames, self.config.num_labels)
            noised_boxes = labels.noised_boxes(self.config, pixel_values.device)
        outputs = self.model(
            pixel_values,
            pixel_mask,
            output_attentions,
            output_hidden_states,
            noised_boxes,
            supervised_frames,
            return_dict=True,
        )
        logits = self.classify(outputs.class_hidden_states)
        actor_logits = self.actor_head(outputs.actor_hidden_states)
        predictions = [
            {"logits": logits[i], "pred_boxes": outputs.pred_boxes[i], "actor_logits": actor_logits[i]}
            for i in range(self.config.decoder_layers)
        ]
        loss, loss_dict = None, None
        if labels is not None:
            loss, loss_dict = self.loss_function(
                predictions, labels, self.config, loss_divisors, outputs.denoised_boxes
            )
        return ClassQueryDetectionOutput(
            loss=loss,
            loss_dict=loss_dict,
            scores=action_scores(predictions[-1], self.config.score_with_actor),
            **predictions[-1],
            auxiliary_outputs=predictions[:-1],
            reference_boxes=outputs.reference_boxes,
            encoder_last_hidden_state=outputs.encoder_last_hidden_state,
            hidden_states=outputs.hidden_states,
            class_attentions=outputs.class_attentions,
        )

    def classify(self, class_hidden_states: torch.Tensor) -> torch.Tensor:
        """Read logits (..., num_labels) from class features (..., num_labels, d_model)."""
        features = self.classifier_dropout(class_hidden_states)
        if self.class_readout_bias is None:
            return features.mean(-1)
        readout = (
            self.class_readout if self.text_readout is None else self.text_readout(self.model.decoder.class_words())
        )
        return (features * readout).sum(-1) + self.class_readout_bias

    def set_classes(
        self, classes: Mapping[str, Words] | Sequence[str], text_encoder: str | Encode | None = None
    ) -> "ClassQueryForVideoActionDetection":
        """Detect other classes, which are given in words; only for a model with `class_queries="text"`.

        Classes that the model knows keep what they learned. Where all of them come first, in their order, their scores
        stay as they are: they do not see those behind them. All others are noted as `untrained_classes` in the
        configuration. A model changes its classes before it is compiled, wrapped or given to an optimizer.

        Args:
            classes: One or several sentences for the name of each class, in the order of their ids. For one that the
                model knows, None or the same words keep it; other words make it a new one. Or just names: of classes
                that it knows, or sentences that are their own names.
            text_encoder: Folder or Hub name of what encodes the words, or a function from a list of n sentences to
                embeddings (n, text_embedding_size); by default the `text_encoder` of the configuration. It is not
                needed for classes that are known.

        Returns:
            The model itself.

        Raises:
            TextError: If the model learned its classes without words, a class has no words or empty ones, the same
                words are there twice, or the text encoder is not there or not that of the model.
        """
        if self.config.class_queries != "text":
            raise TextError(
                "this model learned a query for each of its classes: only one with class_queries='text' takes words"
            )
        if not isinstance(classes, Mapping):
            classes = [classes] if isinstance(classes, str) else list(classes)
            if unnamed := [label for label in classes if not isinstance(label, str)]:
                raise TextError(f"classes are given by names or sentences, got {repr(unnamed[0])[:200]}")
            if len(set(classes)) < len(classes):
                raise TextError(f"classes must have different names, got {str(list(classes))[:200]}")
            known = self.config.class_descriptions or {}
            classes = {label: None if label in known else label for label in classes}
        decoder = self.model.decoder
        vectors = [part for part in (decoder.text_queries, self.text_readout) if part is not None]
        set_words(self.config, decoder.class_words, vectors, classes, text_encoder)
        for layer in decoder.classifying_layers:
            layer.class_groups = self.config.class_groups
        return self


__all__ = [
    "ClassQueryDecoderOutput",
    "ClassQueryDetectionOutput",
    "ClassQueryForVideoActionDetection",
    "ClassQueryModel",
    "ClassQueryModelOutput",
    "ClassQueryPreTrainedModel",
]
