"""Auxiliary heads: what a block inside a network would answer, so that it can be trained by a loss of its own.

Belilovsky et al. 2018, arXiv:1812.11446; Laskin et al. 2020, arXiv:2012.03837. A head sees the outputs of one block and
gives what the network's end gives; it is small, since every block but the last pays for one.
"""

import math
from abc import ABC, abstractmethod
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from hpcopt.config import Choice
from hpcopt.errors import JobError


class HeadConfig(Choice, ABC):
    """A head of a block."""

    @abstractmethod
    def build(self, features: tuple[int, ...], outputs: tuple[int, ...]) -> nn.Module:
        """Make the head: from a block's outputs, (n, *features), to outputs like the network's, (n, *outputs).

        Raises:
            JobError: it does not suit such features.
        """


class LinearHeadConfig(HeadConfig):
    """One linear layer on all features: for perceptrons."""

    name: Literal["linear"] = "linear"
    hidden: int = Field(0, ge=0, description="units of a ReLU layer before it; 0: none")

    def build(self, features: tuple[int, ...], outputs: tuple[int, ...]) -> nn.Module:
        return nn.Sequential(nn.Flatten(), *_dense(math.prod(features), self.hidden, outputs))


class PooledHeadConfig(HeadConfig):
    """The mean over the places of each channel, and a linear layer: for convolutional networks."""

    name: Literal["pooled"] = "pooled"
    hidden: int = Field(0, ge=0, description="units of a ReLU layer before it; 0: none")

    def build(self, features: tuple[int, ...], outputs: tuple[int, ...]) -> nn.Module:
        if len(features) != 3:
            raise JobError(f'head "pooled" is for features of (channels, height, width), not {features}').everywhere()
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), *_dense(features[0], self.hidden, outputs))


class TokensHeadConfig(HeadConfig):
    """A norm and a linear layer on every token; where the network gives one answer, on the mean of the normed tokens:
    for transformers.
    """

    name: Literal["tokens"] = "tokens"

    def build(self, features: tuple[int, ...], outputs: tuple[int, ...]) -> nn.Module:
        if len(features) != 2:
            raise JobError(f'head "tokens" is for features of (tokens, width), not {features}').everywhere()
        norm, width = nn.LayerNorm(features[1]), features[1]
        if len(outputs) == 2 and outputs[0] == features[0]:
            return nn.Sequential(norm, nn.Linear(width, outputs[1]))
        return nn.Sequential(norm, MeanOverTokens(), *_dense(width, 0, outputs))


class AutoHeadConfig(HeadConfig):
    """By the features' shape: "linear" for (width,), "tokens" for (tokens, width), "pooled" for (channels, h, w)."""

    name: Literal["auto"] = "auto"

    def build(self, features: tuple[int, ...], outputs: tuple[int, ...]) -> nn.Module:
        kinds: dict[int, HeadConfig] = {2: TokensHeadConfig(), 3: PooledHeadConfig()}
        return kinds.get(len(features), LinearHeadConfig()).build(features, outputs)


class MeanOverTokens(nn.Module):
    """(n, tokens, width) to (n, width)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def _dense(width: int, hidden: int, outputs: tuple[int, ...]) -> list[nn.Module]:
    layers: list[nn.Module] = [nn.Linear(width, hidden), nn.ReLU()] if hidden else []
    layers.append(nn.Linear(hidden or width, math.prod(outputs)))
    return layers if len(outputs) == 1 else [*layers, nn.Unflatten(1, outputs)]
