"""ResNet-18 and ResNet-50 for photographs (He et al. 2015, arXiv:1512.03385, table 1).

As in the implementations that everybody compares with, the stride of a bottleneck is on its 3x3 convolution. GroupNorm
of 32 groups stands where the paper has BatchNorm (arXiv:1803.08494): as many parameters, and a sample's result does not
depend on which rank the others of the batch are on, nor on statistics that ranks would have to agree about.
"""

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from hpcopt.models.config import ImageModelConfig

_BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}
_GROUPS = 32


class DeepResNetConfig(ImageModelConfig):
    """ResNet with four stages of 64 to 512 channels after a 7x7 convolution."""

    name: Literal["deep_resnet"] = "deep_resnet"
    depth: Literal[18, 50] = Field(50, description="layers: 18 of basic blocks or 50 of bottlenecks")

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Sequential:
        """Make the network from images (n, *shape), with shape (channels, height, width), to logits (n, classes)."""
        layers: list[nn.Module] = [
            _conv(shape[0], 64, kernel=7, stride=2),
            nn.GroupNorm(_GROUPS, 64),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),
        ]
        channels, expansion = 64, 1 if self.depth == 18 else 4
        for stage, blocks in enumerate(_BLOCKS[self.depth]):
            width = 64 * 2**stage
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(Residual(channels, width, expansion, stride))
                channels = width * expansion
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


class Residual(nn.Module):
    """A basic block (two 3x3 convolutions) or a bottleneck (1x1, 3x3, 1x1) beside a shortcut, which is a 1x1
    convolution where the shape changes. The last norm starts at zero, so that a block starts as its shortcut.
    """

    def __init__(self, in_channels: int, width: int, expansion: int, stride: int) -> None:
        super().__init__()
        out_channels = width * expansion
        plan = (
            [(width, 3, stride), (width, 3, 1)]
            if expansion == 1
            else [(width, 1, 1), (width, 3, stride), (out_channels, 1, 1)]
        )
        layers: list[nn.Module] = []
        channels = in_channels
        for channels_out, kernel, step in plan:
            layers += [_conv(channels, channels_out, kernel, step), nn.GroupNorm(_GROUPS, channels_out), nn.ReLU()]
            channels = channels_out
        self.body = nn.Sequential(*layers[:-1])
        nn.init.zeros_(self.body[-1].weight)  # type: ignore[arg-type]
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                _conv(in_channels, out_channels, 1, stride), nn.GroupNorm(_GROUPS, out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, in_channels, h, w) to (n, width * expansion, h / stride, w / stride)."""
        return F.relu(self.body(x) + self.shortcut(x))


def _conv(in_channels: int, out_channels: int, kernel: int, stride: int) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv
