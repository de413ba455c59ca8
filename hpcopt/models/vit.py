"""A small vision transformer (Dosovitskiy et al. 2020, arXiv:2010.11929) for images of 8x8 to 64x64.

Patches become tokens, with a learnt place each; pre-norm transformer layers; the mean over the tokens, as in the
paper's appendix D.3, in place of a class token. It is a sequence of layers, and so can be cut between any two.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from hpcopt.models.config import ImageModelConfig
from hpcopt.models.heads import MeanOverTokens


class VitConfig(ImageModelConfig):
    """Vision transformer."""

    name: Literal["vit"] = "vit"
    patch: int = Field(7, ge=1, description="pixels on a side of a patch; it divides the image's")
    layers: int = Field(4, ge=1, description="transformer layers")
    width: int = Field(64, ge=1, description="of a token")
    heads: int = Field(4, ge=1, description="of attention; they divide the width")
    dropout: float = Field(0.0, ge=0, lt=1, description="within the transformer layers")

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Sequential:
        """Make the network from images (n, *shape), with shape (channels, height, width), to logits (n, classes).

        Raises:
            ValueError: the patch does not divide the image, or the heads do not divide the width.
        """
        channels, height, width = shape
        if height % self.patch or width % self.patch:
            raise ValueError(f"patch = {self.patch} does not divide images of {height} by {width}")
        if self.width % self.heads:
            raise ValueError(f"heads = {self.heads} do not divide width = {self.width}")
        tokens = (height // self.patch) * (width // self.patch)
        return nn.Sequential(
            Patches(channels, self.patch, tokens, self.width),
            *(_layer(self.width, self.heads, self.dropout) for _ in range(self.layers)),
            nn.LayerNorm(self.width),
            MeanOverTokens(),
            nn.Linear(self.width, classes),
        )


class Patches(nn.Module):
    """Images (n, channels, height, width) to tokens (n, tokens, width) that know their place."""

    def __init__(self, channels: int, patch: int, tokens: int, width: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(channels, width, patch, stride=patch)
        self.place = nn.Parameter(0.02 * torch.randn(tokens, width))

    def forward(self, x: Tensor) -> Tensor:
        tokens: Tensor = self.project(x).flatten(2).transpose(1, 2)
        return tokens + self.place


def _layer(width: int, heads: int, dropout: float) -> nn.Module:
    return nn.TransformerEncoderLayer(
        width, heads, 4 * width, dropout, activation="gelu", batch_first=True, norm_first=True
    )
