"""U-Net (Ronneberger, Fischer, Brox 2015, arXiv:1505.04597) for images of any size that halves ``depth`` times.

Differences from the paper: convolutions are padded, so that the mask is as large as the image; GroupNorm follows each
(a sample's result does not depend on which rank the others of its batch are on); the way up enlarges and then mixes
channels by a 1x1 convolution where the paper has a transposed one, so that every layer is one that K-FAC knows.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from hpcopt.models.config import ImageModelConfig


class UNetConfig(ImageModelConfig):
    """U-Net with two convolutions at each of depth + 1 sizes."""

    name: Literal["unet"] = "unet"
    depth: int = Field(3, ge=1, description="times that the image is halved; the paper's is 4")
    width: int = Field(
        16, ge=4, multiple_of=4, description="channels at full size, doubled at each half; the paper's is 64"
    )

    def build(self, shape: tuple[int, ...], classes: int) -> "UNet":
        """Make the network from images (n, *shape), with shape (channels, height, width), to logits (n, classes,
        height, width).
        """
        if any(side % 2**self.depth for side in shape[1:]):
            raise ValueError(f"images of {shape[1]} x {shape[2]} pixels do not halve {self.depth} times")
        return UNet(shape[0], classes, self.width, self.depth)


class UNet(nn.Module):
    """The network."""

    def __init__(self, channels: int, classes: int, width: int, depth: int) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(depth + 1)]
        self.down = nn.ModuleList(_two(a, b) for a, b in zip([channels, *widths], widths, strict=False))
        self.mix = nn.ModuleList(nn.Conv2d(2 * w, w, kernel_size=1) for w in widths[:-1])
        self.up = nn.ModuleList(_two(2 * w, w) for w in widths[:-1])
        self.classify = nn.Conv2d(width, classes, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, channels, height, width) to (n, classes, height, width)."""
        seen = [self.down[0](x)]
        for level in self.down[1:]:
            seen.append(level(F.max_pool2d(seen[-1], 2)))
        x = seen.pop()
        for mix, up in zip(reversed(self.mix), reversed(self.up), strict=True):
            x = mix(F.interpolate(x, scale_factor=2, mode="nearest"))
            x = up(torch.cat([seen.pop(), x], 1))
        logits: Tensor = self.classify(x)
        return logits


def _two(in_channels: int, out_channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (in_channels, out_channels):
        conv = nn.Conv2d(channels, out_channels, kernel_size=3, padding=1, bias=False)
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        layers += [conv, nn.GroupNorm(out_channels // 4, out_channels), nn.ReLU()]
    return nn.Sequential(*layers)
