"""ir-CSN backbone (channel-separated 3-D residual network) and the projection of its stages to feature levels.

One class for every depth. Source: "Video Classification with Channel-Separated Convolutional Networks" (ICCV 2019),
interaction-reduced form, with the strides of the published detector.
"""

import torch
from torch import nn

from .configuration_classquery import ClassQueryCSNConfig


class ClassQueryCSNBlock(nn.Module):
    """Bottleneck: 1x1x1, depth-wise 3x3x3 and 1x1x1 convolutions, each with batch norm, and a residual connection.

    There is no `conv2`: the numbers are those of the published weights, in which it is the convolution that the
    interaction-reduced form leaves out. Gradient checkpointing does not reach here: computed again, batch norms would
    take in their statistics twice.
    """

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: tuple[int, int, int], down_sample: bool):
        super().__init__()
        out_channels = self.expansion * width
        self.conv1 = _conv(in_channels, width)
        self.bn1 = _batch_norm(width)
        self.conv3 = _conv(width, width, kernel_size=3, stride=stride, groups=width)
        self.bn3 = _batch_norm(width)
        self.conv4 = _conv(width, out_channels)
        self.bn4 = _batch_norm(out_channels)
        projection = [_conv(in_channels, out_channels, stride=stride), _batch_norm(out_channels)]
        self.down_sample = nn.Sequential(*projection if down_sample else [])

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Transform (batch, in_channels, t, h, w)."""
        update = self.bn1(self.conv1(features)).relu()
        update = self.bn3(self.conv3(update)).relu()
        return (self.bn4(self.conv4(update)) + self.down_sample(features)).relu()


class ClassQueryCSNBackbone(nn.Module):
    """Turn a clip into the maps of the last three stages."""

    stage_widths = (64, 128, 256, 512)

    def __init__(self, config: ClassQueryCSNConfig):
        super().__init__()
        self.config = config
        self.conv1 = _conv(3, 64, kernel_size=(3, 7, 7), stride=(1, 2, 2))
        self.bn1 = _batch_norm(64)
        self.pool = nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1))
        last_stride = 2 if config.last_stride else 1
        self.layer1 = self._make_stage(0, in_channels=64, stride=(1, 1, 1))
        self.layer2 = self._make_stage(1, in_channels=256, stride=(2, 2, 2))
        self.layer3 = self._make_stage(2, in_channels=512, stride=(2, 2, 2))
        self.layer4 = self._make_stage(3, in_channels=1024, stride=(2, last_stride, last_stride))
        for part in self._frozen_parts():
            part.requires_grad_(False)

    def _make_stage(self, index: int, in_channels: int, stride: tuple[int, int, int]) -> nn.Sequential:
        width, out_channels = self.stage_widths[index], self.out_channels[index]
        blocks = [ClassQueryCSNBlock(in_channels, width, stride, down_sample=True)]
        for _ in range(self.config.depths[index] - 1):
            blocks.append(ClassQueryCSNBlock(out_channels, width, (1, 1, 1), down_sample=False))
        return nn.Sequential(*blocks)

    @property
    def out_channels(self) -> list[int]:
        """Channels of the four stages."""
        return [ClassQueryCSNBlock.expansion * width for width in self.stage_widths]

    def _frozen_parts(self) -> list[nn.Module]:
        parts: list[list[nn.Module]] = [
            [self.conv1, self.bn1],
            [self.layer1],
            [self.layer2],
            [self.layer3],
            [self.layer4],
        ]
        return [part for group in parts[: self.config.freeze_stages] for part in group]

    def train(self, mode: bool = True):
        """Set the training mode, but of batch norms only where the configuration does not freeze them."""
        super().train(mode)
        if self.config.freeze_batch_norm:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm3d | nn.SyncBatchNorm):
                    module.eval()
        return self

    def forward(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        """Encode a clip.

        Args:
            pixel_values: Shape (batch, num_frames, 3, height, width), normalised.

        Returns:
            Maps (batch, channels, t, h, w) at 1/2, 1/4 and 1/8 of the frames and 1/8, 1/16 and 1/16 of the size
            (1/32 with `last_stride`), rounded up.
        """
        pixel_values = pixel_values.to(self.conv1.weight.dtype)
        features = self.pool(self.bn1(self.conv1(pixel_values.transpose(1, 2))).relu())
        layer2 = self.layer2(self.layer1(features))
        layer3 = self.layer3(layer2)
        return [layer2, layer3, self.layer4(layer3)]


class ClassQueryInputProjection(nn.Module):
    """Bring the maps of several stages to `d_model` channels, and add one of half the last size."""

    def __init__(self, in_channels: list[int], d_model: int):
        super().__init__()
        projections = [nn.Conv3d(channels, d_model, kernel_size=1) for channels in in_channels]
        projections.append(nn.Conv3d(in_channels[-1], d_model, kernel_size=3, stride=(1, 2, 2), padding=1))
        self.projections = nn.ModuleList(
            nn.Sequential(projection, nn.GroupNorm(32, d_model)) for projection in projections
        )

    def forward(self, stages: list[torch.Tensor]) -> list[torch.Tensor]:
        """Map stages to one (batch, d_model, t, h_l, w_l) per level, fine to coarse."""
        inputs = [*stages, stages[-1]]
        return [projection(features) for projection, features in zip(self.projections, inputs, strict=True)]


def _conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int | tuple[int, int, int] = 1,
    stride: int | tuple[int, int, int] = 1,
    groups: int = 1,
) -> nn.Conv3d:
    sizes = (kernel_size,) * 3 if isinstance(kernel_size, int) else kernel_size
    padding = (sizes[0] // 2, sizes[1] // 2, sizes[2] // 2)
    return nn.Conv3d(in_channels, out_channels, sizes, stride=stride, padding=padding, groups=groups, bias=False)


def _batch_norm(num_channels: int) -> nn.BatchNorm3d:
    return nn.BatchNorm3d(num_channels, eps=1e-3)


__all__ = ["ClassQueryCSNBackbone", "ClassQueryInputProjection"]
