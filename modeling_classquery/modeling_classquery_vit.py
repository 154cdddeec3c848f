"""Video ViT backbone (VideoMAE's architecture) and the feature pyramid built on its last map.

The blocks are timm's, with their fused attention and stochastic depth.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_classquery import ClassQueryViTConfig
from .linear_classquery import ClassQueryLinear


class ClassQueryViTBlock(GradientCheckpointingLayer, Block):
    """Pre-norm transformer block of timm, with gradient checkpointing."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for module in self.modules():
            if type(module) is nn.Linear:
                module.__class__ = ClassQueryLinear


class ClassQueryViTBackbone(nn.Module):
    """Turn a clip into one map of features, without a class token.

    The positions are a constant sine table for `num_frames` frames of `position_grid` patches; other frame sizes
    interpolate it bicubically, slice by slice. The released table counts tokens in one dimension; the factorized one
    can be interpolated in time as well.
    """

    position_table: torch.Tensor

    def __init__(self, config: ClassQueryViTConfig, num_frames: int):
        super().__init__()
        self.config = config
        self.num_frames = num_frames
        stride = (config.tubelet_size, config.patch_size, config.patch_size)
        self.patch_embedding = nn.Conv3d(3, config.hidden_size, kernel_size=stride, stride=stride)
        drop_path_rates = np.linspace(0, config.drop_path_rate, config.num_hidden_layers).tolist()
        self.layers = nn.ModuleList(self._make_block(config, rate) for rate in drop_path_rates)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        # Not in the state dict, as in the release; `ClassQueryPreTrainedModel._init_weights` fills it again after
        # `from_pretrained`, which leaves such buffers uninitialised.
        self.register_buffer("position_table", self.make_position_table(), persistent=False)

    @staticmethod
    def _make_block(config: ClassQueryViTConfig, drop_path_rate: float) -> ClassQueryViTBlock:
        return ClassQueryViTBlock(
            config.hidden_size,
            config.num_attention_heads,
            mlp_ratio=config.intermediate_size / config.hidden_size,
            qkv_bias=True,
            drop_path=drop_path_rate,
            norm_layer=lambda dim, **kwargs: nn.LayerNorm(dim, eps=config.layer_norm_eps, **kwargs),
        )

    @property
    def table_shape(self) -> tuple[int, int, int]:
        """Size (t, h, w) of the position table."""
        return (self.num_frames // self.config.tubelet_size, *self.config.position_grid)

    def make_position_table(self) -> torch.Tensor:
        """Compute the sine table in float64: shape (t * h * w, hidden_size), in the dtype of new parameters."""
        if self.config.position_table == "released":
            table = sine_table(np.arange(np.prod(self.table_shape)), self.config.hidden_size)
        else:
            grid = np.indices(self.table_shape).reshape(3, -1)
            eighth = self.config.hidden_size // 8
            widths = (2 * eighth, 3 * eighth, 3 * eighth)
            table = np.concatenate([sine_table(p, width) for p, width in zip(grid, widths, strict=True)], axis=1)
        return torch.from_numpy(table).to(torch.get_default_dtype())

    def reset_position_table(self) -> None:
        """Fill the position table again, unless a checkpoint did."""
        init.copy_(self.position_table, self.make_position_table())

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Encode a clip.

        Args:
            pixel_values: Shape (batch, num_frames, 3, height, width), normalised.

        Returns:
            Shape (batch, hidden_size, num_frames / tubelet_size, height // patch_size, width // patch_size).
        """
        pixel_values = pixel_values.to(self.patch_embedding.weight.dtype)
        features = self.patch_embedding(pixel_values.transpose(1, 2))
        batch_size, channels, t, h, w = features.shape
        hidden_states = features.flatten(2).transpose(1, 2) + self._positions((t, h, w)).to(features.dtype)
        for layer in self.layers:
            hidden_states = layer(hidden_states)
        return self.layernorm(hidden_states).transpose(1, 2).reshape(batch_size, channels, t, h, w)

    def _positions(self, shape: tuple[int, int, int]) -> torch.Tensor:
        """Positions of shape (t * h * w, hidden_size), interpolated where the size is not the table's."""
        # The release compares products only: there, a 7x28 grid takes the 14x14 table as it is.
        if (
            self.config.position_table == "released"
            and not _is_open(shape)
            and math.prod(shape) == len(self.position_table)
        ):
            return self.position_table
        return interpolate_positions(self.position_table, self.table_shape, shape)


def interpolate_positions(
    table: torch.Tensor, table_shape: tuple[int, int, int], shape: tuple[int, int, int]
) -> torch.Tensor:
    """Bring a table of positions to another size: bicubic in height and width, linear in time.

    Args:
        table: Shape (t * h * w, channels).
        table_shape: Its size (t, h, w).
        shape: The size wanted.

    Returns:
        Shape (t * h * w, channels), float32 if it had to be interpolated; the table itself if it has the size.
    """
    # In this order: comparing an open size would close it.
    if not _is_open(shape) and shape == table_shape:
        return table
    t, h, w = shape
    slices = table.view(*table_shape, -1).permute(0, 3, 1, 2)
    slices = F.interpolate(slices.float(), size=(h, w), mode="bicubic", align_corners=False)
    if t != len(slices):
        lines = F.interpolate(slices.flatten(1).T[None], size=t, mode="linear", align_corners=False)
        slices = lines[0].T.unflatten(1, slices.shape[1:])
    return slices.permute(0, 2, 3, 1).flatten(0, 2)


def _is_open(shape: tuple[int, int, int]) -> bool:
    """Whether an exported program takes any size. Then it always interpolates, even at the table's size."""
    return any(isinstance(size, torch.SymInt) for size in shape)


def sine_table(positions: np.ndarray, width: int) -> np.ndarray:
    """Sines at even and cosines at odd channels: shape (positions, width), float64."""
    channels = np.arange(width)
    angles = positions[:, None] / 10000 ** (2 * (channels // 2) / width)
    return np.where(channels % 2 == 0, np.sin(angles), np.cos(angles))


class ClassQueryChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of (batch, channels, ...) maps, eps 1e-6."""

    def __init__(self, num_channels: int):
        super().__init__(num_channels, eps=1e-6)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return super().forward(features.movedim(1, -1)).movedim(-1, 1)


class ClassQueryFeaturePyramid(nn.Module):
    """Four scales of one map: 4, 2, 1 and 1/2 times its height and width, all of `d_model` channels."""

    def __init__(self, hidden_size: int, d_model: int, num_levels: int):
        super().__init__()
        half, quarter = hidden_size // 2, hidden_size // 4
        quadruple = [
            ClassQueryDoubling(hidden_size, half),
            ClassQueryChannelNorm(half),
            nn.GELU(),
            ClassQueryDoubling(half, quarter),
            *_output(quarter, d_model),
        ]
        double = [ClassQueryDoubling(hidden_size, half), *_output(half, d_model)]
        same = _output(hidden_size, d_model)
        halved = [nn.MaxPool3d((1, 2, 2)), *_output(hidden_size, d_model)]
        scales = [quadruple, double, same, halved][-num_levels:]
        self.scales = nn.ModuleList(nn.Sequential(*scale) for scale in scales)

    def forward(self, features: torch.Tensor) -> list[torch.Tensor]:
        """Map (batch, hidden_size, t, h, w) to one (batch, d_model, t, h_l, w_l) per level, fine to coarse."""
        return [scale(features) for scale in self.scales]


class ClassQueryDoubling(nn.ConvTranspose3d):
    """Twice the height and width; initialised as by PyTorch, which transformers does not do for this layer."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, kernel_size=(1, 2, 2), stride=(1, 2, 2))
        # Built for a checkpoint, which may lack it.
        self.is_empty = self.weight.is_meta


def _output(in_channels: int, out_channels: int) -> list[nn.Module]:
    return [
        nn.Conv3d(in_channels, out_channels, kernel_size=1, bias=False),
        ClassQueryChannelNorm(out_channels),
        nn.Conv3d(out_channels, out_channels, kernel_size=3, padding=1, bias=False),
    ]


__all__ = ["ClassQueryFeaturePyramid", "ClassQueryViTBackbone", "interpolate_positions", "sine_table"]
