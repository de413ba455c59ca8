"""The small residual network for 8x8 to 32x32 images (He et al. 2015, arXiv:1512.03385, section 4.2).

Three stages of basic blocks, each stage half the size and twice the width of the one before. GroupNorm stands where the
paper has BatchNorm (arXiv:1803.08494): its result for a sample does not depend on which rank the others of the batch
are on.
"""

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from hpcopt.models.config import ImageModelConfig


class ResNetConfig(ImageModelConfig):
    """ResNet of depth 6 * blocks + 2."""

    name: Literal["resnet"] = "resnet"
    blocks: int = Field(
        1, ge=1, description="residual blocks in each of the three stages: 1 is ResNet-8, 3 is ResNet-20"
    )
    width: int = Field(16, ge=4, multiple_of=4, description="channels of the first stage")

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Sequential:
        """Make the network from images (n, *shape), with shape (channels, height, width), to logits (n, classes)."""
        channels = self.width
        layers: list[nn.Module] = [_conv(shape[0], channels), _norm(channels), nn.ReLU()]
        for stage in range(3):
            for block in range(self.blocks):
                halve = stage > 0 and block == 0
                out_channels = self.width * 2**stage
                layers.append(BasicBlock(channels, out_channels, stride=2 if halve else 1))
                channels = out_channels
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]
        return nn.Sequential(*layers)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = _conv(in_channels, out_channels, stride), _norm(out_channels)
        self.conv2, self.norm2 = _conv(out_channels, out_channels), _norm(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, in_channels, h, w) to (n, out_channels, h / stride, w / stride)."""
        h = F.relu(self.norm1(self.conv1(x)))
        h = self.norm2(self.conv2(h))
        return F.relu(h + self.shortcut(x))


def _conv(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(channels // 4, channels)
