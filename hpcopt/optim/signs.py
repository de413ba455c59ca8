"""Random signs, by which the diagonal of a Hessian is estimated (Hutchinson's): v with ``E[v v^T] = 1``.

The signs of a matrix, or of a convolution's kernels, are a column of signs times a row of signs. They are uncorrelated,
so mean and variance of each value of ``v * H v`` are those of independent signs; and what a layer makes of them is a
product with a vector, where independent signs take a product of matrices (``hpcopt.optim.products``).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from hpcopt.pinned import sent


@dataclass(frozen=True)
class Outer:
    """A tensor of shape (n, ...) whose values are a column's times a row's.

    Attributes:
        column: shape (n,).
        row: shape (...).

    >>> Outer(torch.tensor([1.0, -1.0]), torch.tensor([1.0, 2.0, 3.0])).dense()
    tensor([[ 1.,  2.,  3.],
            [-1., -2., -3.]])
    """

    column: Tensor
    row: Tensor

    def dense(self) -> Tensor:
        """The values."""
        return self.column.view(-1, *[1] * self.row.dim()) * self.row


Vector: TypeAlias = Tensor | Outer  # one tensor of a list that has one for each parameter


def dense(vector: Vector) -> Tensor:
    """All values."""
    return vector.dense() if isinstance(vector, Outer) else vector


def rademacher(parameters: Sequence[Tensor], seed: int) -> list[Vector]:
    """Random signs, +1 and -1, of each parameter's shape: a function of the seed alone, on any device."""
    counts = [p.shape[0] + p.shape[1:].numel() if p.dim() > 1 else p.numel() for p in parameters]
    packed = np.frombuffer(np.random.default_rng(seed).bytes(-(-sum(counts) // 8)), np.uint8)
    signs = torch.from_numpy(np.unpackbits(packed, count=sum(counts))).to(torch.int8).mul_(2).sub_(1)
    return [
        _shaped(sent(own, p.device).to(p.dtype), p)
        for own, p in zip(torch.split(signs, counts), parameters, strict=True)
    ]


def _shaped(signs: Tensor, like: Tensor) -> Vector:
    if like.dim() < 2:
        return signs.view(like.shape)
    return Outer(signs[: like.shape[0]], signs[like.shape[0] :].view(like.shape[1:]))
