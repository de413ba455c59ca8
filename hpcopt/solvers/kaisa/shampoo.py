"""Shampoo: both factors of the gradients to the power -1/4 (Gupta, Koren, Singer 2018, arXiv:1802.09568).

    P = G^(-1/4) W A^(-1/4),   A, G averages of W^T W and W W^T

With the factors' eigenvalues goes ``epsilon`` times their sum. P has no scale of its own: it is given the norm of W,
unless ``graft`` is false (Anil et al. 2020, arXiv:2002.09018), so that the inner optimizer's rate and momentum fit.

Roots are taken by eigenvectors, or by Newton's coupled iteration for the p-th root (Guo and Higham 2006, eq. 3.3), in
products alone: for a device on which eigenvectors are slow.
"""

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from hpcopt.config import Config
from hpcopt.solvers.kaisa import symmetric
from hpcopt.solvers.kaisa.factors import Factor, Failures, Work, eigh, together, unpacked
from hpcopt.solvers.kaisa.inverse import Packed, parts
from hpcopt.solvers.kaisa.layers.matrix import Source

EXTRA = 8  # rounds of Newton's iteration once the smallest eigenvalue has come near the others


class ShampooSettings(Config):
    """How roots are taken."""

    epsilon: float = Field(1e-6, gt=0, lt=1, description="added to a factor's eigenvalues, over their sum")
    roots: Literal["eigen", "newton"] = Field("eigen", description="by eigenvectors, or by matrix products alone")


class Shampoo(Packed):
    """Keeps the packed roots of A and G."""

    power: ClassVar[int] = 4  # the root's order
    source: Source = "gradients"
    natural: ClassVar[bool] = False
    squares = 4  # the factor, its eigenvectors, and the two that divide and conquer works in, or Newton's products

    def __init__(self, settings: ShampooSettings) -> None:
        self._settings = settings

    def flops(self, size: int) -> float:
        newton = (4.0 + self.power) * size**3 * rounds(self._settings.epsilon, self.power)
        return 9.5 * size**3 if self._settings.roots == "eigen" else newton

    def invert(self, work: Sequence[Work], failures: Failures) -> None:
        factors = []
        for w in work:
            for shape, packed, out in zip((w.layer.a, w.layer.g), (w.a, w.g), parts(w.layer, w.out), strict=True):
                if shape.size > 1:
                    factors.append(Factor(packed, shape.size, 0.0, out))
                else:
                    out.copy_((packed + self._added(packed.sum())) ** (-1 / self.power))
        for group in together(factors):
            roots = self._roots(unpacked(group), failures)
            for factor, root in zip(group, torch.split(roots, [len(f.packed) for f in group]), strict=True):
                symmetric.pack(root, factor.out)

    def _roots(self, full: Tensor, failures: Failures) -> Tensor:
        """The powers -1/p of matrices, shape (matrices, size, size), once what is added is."""
        diagonal = full.diagonal(dim1=1, dim2=2)
        added = self._added(diagonal.sum(1, keepdim=True))
        diagonal += added
        if self._settings.roots == "newton":
            return newton_roots(full, rounds(self._settings.epsilon, self.power), self.power)
        values, vectors = eigh(full, failures)
        values = torch.maximum(values, added)
        powers = values.pow(-1 / self.power).unsqueeze(1)
        return ((vectors * powers) @ vectors.transpose(1, 2)).to(full.dtype)

    def _added(self, total: Tensor) -> Tensor:
        return (total * self._settings.epsilon).clamp(min=torch.finfo(total.dtype).tiny)


def rounds(epsilon: float, power: int) -> int:
    """Of Newton's iteration, until eigenvalues that were epsilon of the bound on the largest are 1: each round
    multiplies the small ones by ((p + 1) / p)^p.
    """
    return math.ceil(math.log(2 / epsilon) / (power * math.log(1 + 1 / power))) + EXTRA


def newton_roots(full: Tensor, count: int, power: int) -> Tensor:
    """The powers -1/p of positive definite matrices, shape (matrices, size, size), p 2 or 4, by so many rounds of ::

    T = ((p + 1) I - M) / p,   M <- T^p M,   X <- X T
    """
    bound: Tensor = torch.linalg.matrix_norm(full, keepdim=True)  # the largest eigenvalue is no more
    z = (1 + power) / (2 * bound)
    eye = torch.eye(full.shape[1], dtype=full.dtype, device=full.device)
    m, x = full * z, eye * z.pow(1 / power)
    for _ in range(count):
        t = (eye * (power + 1) - m) / power
        square = t @ t
        m, x = (square @ square if power == 4 else square) @ m, x @ t
    return x
