"""Video transformers of the transformers library as backbones: VideoMAE and V-JEPA 2, in all their sizes.

Layers, configurations and names of weights are theirs, so that their checkpoints load as they are. What is added is
what detection needs: frames of any size and number, and tokens turned into one map (t, h, w). At the size and the
number of frames of the configuration the result is bit for bit that of the original model.
"""

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers import initialization as init
from transformers.models.videomae.modeling_videomae import VideoMAEEncoder, VideoMAEPatchEmbeddings
from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2Encoder, VJEPA2RopeAttention

from .modeling_classquery_vit import interpolate_positions, sine_table


class ClassQueryVideoMAEBackbone(nn.Module):
    """VideoMAE without heads. Its sine table is interpolated for other sizes and numbers of frames.

    As there, a final layer norm belongs to the model only with `use_mean_pooling=False`.
    """

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.config = config
        patch_height, patch_width = _pair(config.patch_size)
        height, width = _pair(config.image_size)
        self.table_shape = (config.num_frames // config.tubelet_size, height // patch_height, width // patch_width)
        self.embeddings = nn.ModuleDict({"patch_embeddings": VideoMAEPatchEmbeddings(config)})
        self.encoder = VideoMAEEncoder(config)
        self.layernorm = (
            None if config.use_mean_pooling else nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        )
        self.register_buffer("position_table", self.make_position_table(), persistent=False)

    def make_position_table(self) -> torch.Tensor:
        """Sines of the one-dimensional index of a token: shape (t * h * w, hidden_size), float32."""
        return torch.from_numpy(sine_table(np.arange(np.prod(self.table_shape)), self.config.hidden_size)).float()

    def reset_position_table(self) -> None:
        """Fill the position table, which is not in the state dict."""
        init.copy_(self.position_table, self.make_position_table())

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Encode a clip.

        Args:
            pixel_values: Shape (batch, num_frames, 3, height, width), normalised.

        Returns:
            Shape (batch, hidden_size, num_frames / tubelet_size, height // patch height, width // patch width).
        """
        projection = self.embeddings["patch_embeddings"].projection
        features = projection(pixel_values.to(projection.weight.dtype).transpose(1, 2))
        shape = features.shape[2:]
        positions = interpolate_positions(self.position_table, self.table_shape, tuple(shape))
        hidden_states = features.flatten(2).transpose(1, 2) + positions.to(features.dtype)
        hidden_states = self.encoder(hidden_states).last_hidden_state
        if self.layernorm is not None:
            hidden_states = self.layernorm(hidden_states)
        return hidden_states.transpose(1, 2).unflatten(2, shape)


class ClassQueryVJEPA2Backbone(nn.Module):
    """The encoder of V-JEPA 2, without predictor and pooler.

    It rotates queries and keys by the place of a token. There, places are counted in the square grid of the
    configuration whatever the frame; here, in the grid of the frame. Along an axis longer than that of the
    configuration they are squeezed into its range.
    """

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.config = config
        self.encoder = VJEPA2Encoder(config)
        for layer in self.encoder.layer:
            layer.attention = _PlacedAttention(config, config.hidden_size, config.num_attention_heads)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Encode a clip; shapes as in `ClassQueryVideoMAEBackbone`."""
        projection = self.encoder.embeddings.patch_embeddings.proj
        features = projection(pixel_values.to(projection.weight.dtype).transpose(1, 2))
        shape = features.shape[2:]
        places = self._places(shape, features)
        hidden_states = features.flatten(2).transpose(1, 2)
        for layer in self.encoder.layer:
            hidden_states = layer(hidden_states, places)[0]
        return self.encoder.layernorm(hidden_states).transpose(1, 2).unflatten(2, shape)

    def _places(self, shape: torch.Size, features: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Time, row and column of each token, (num_tokens,) each."""
        grid = self.config.crop_size // self.config.patch_size
        longest = (self.config.frames_per_clip // self.config.tubelet_size, grid, grid)
        axes = [
            torch.arange(size, device=features.device, dtype=features.dtype) * min(1, most / size)
            for size, most in zip(shape, longest, strict=True)
        ]
        return tuple(axis.flatten() for axis in torch.meshgrid(*axes, indexing="ij"))


class _PlacedAttention(VJEPA2RopeAttention):
    """Attention that is told the places of the tokens, where V-JEPA 2 takes the mask of a predictor."""

    def get_position_ids(
        self, hidden_states: torch.Tensor, masks: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, ...]:
        return masks


# By the model type of the configuration.
TOKEN_BACKBONES = {"videomae": ClassQueryVideoMAEBackbone, "vjepa2": ClassQueryVJEPA2Backbone}


def _pair(size: int | list[int] | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


__all__ = ["TOKEN_BACKBONES", "ClassQueryVJEPA2Backbone", "ClassQueryVideoMAEBackbone"]
