"""Layers of several networks at once: what twin critics are made of, where two small products cost more than one.

The weights of E networks are one tensor, (E, ...), and no network sees another. Without an ensemble the layers are
torch's own.
"""

import math

import torch
from torch import Tensor, nn


class StackedLinear(nn.Module):
    """E linear layers. Each begins as ``torch.nn.Linear`` does.

    Attributes:
        weight: (E, inputs, outputs), float32.
        bias: (E, 1, outputs), float32.
    """

    def __init__(self, ensemble: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(ensemble, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(ensemble, 1, outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """From (n, inputs), which all take, or (E, n, inputs), one for each, to (E, n, outputs)."""
        if self.weight.shape[-1] == 1:  # a product with a vector: as one of matrices it takes five times as long
            return (x * self.weight.mT).sum(-1, keepdim=True) + self.bias
        return torch.baddbmm(self.bias, x.expand(len(self.weight), *x.shape[-2:]), self.weight)


class StackedNorm(nn.Module):
    """E LayerNorms, (E, n, width) to (E, n, width), each with a scale and a shift of its own.

    Attributes:
        weight, bias: (E, 1, width), float32.
    """

    def __init__(self, ensemble: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(ensemble, 1, width))
        self.bias = nn.Parameter(torch.zeros(ensemble, 1, width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.bias, nn.functional.layer_norm(x, x.shape[-1:]), self.weight)


def linear(inputs: int, outputs: int, ensemble: int | None = None) -> nn.Linear | StackedLinear:
    """A linear layer, or as many as the ensemble has."""
    return nn.Linear(inputs, outputs) if ensemble is None else StackedLinear(ensemble, inputs, outputs)


def norm(width: int, ensemble: int | None = None) -> nn.LayerNorm | StackedNorm:
    """A LayerNorm, or as many as the ensemble has."""
    return nn.LayerNorm(width) if ensemble is None else StackedNorm(ensemble, width)
