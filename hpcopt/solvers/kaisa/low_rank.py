"""Inverses from a factor's leading eigenvectors: narrow products, no cubic work (Puiu 2022, arXiv:2206.15397).

Damped as for Cholesky, a factor F is taken as its ``rank`` largest eigenpairs (U, d) and a multiple of the identity for
the others, mu their mean::

    (F + damping)^-1 ~ (I - U diag((d - mu) / (d + damping)) U^T) / (mu + damping)

so that the trace is kept and a direction is badly served only if its eigenvalue is far from mu in units of the damping.
U comes from subspace iteration, which starts at the U before. A product with W, shape (outputs, inputs), takes
``2 rank`` multiplications for each of its values, where the whole inverse takes as many as the factor has rows; a
factor of at most ``2 rank`` rows, for which that is no gain, is inverted whole.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from hpcopt.pinned import numbers, sent
from hpcopt.seeds import EVERY_RANK, derive
from hpcopt.solvers.kaisa import symmetric
from hpcopt.solvers.kaisa.factors import (
    Factor,
    Failures,
    Work,
    factored_dampings,
    invert_factors,
    together,
    unpacked,
)
from hpcopt.solvers.kaisa.inverse import Kfac, apply_left
from hpcopt.solvers.kaisa.layers.layer import FactorShape, Layer
from hpcopt.solvers.kaisa.products import times_transposed

ITERATIONS = 2


class LowRank(Kfac):
    """Keeps, for each large matrix, U transposed, (d - mu) / (d + damping), and 1 / (mu + damping)."""

    squares = 3  # at most: those of a matrix that is inverted whole

    def __init__(self, rank: int, seed: int = 0, relative: bool = False) -> None:
        """``seed`` is that of the subspaces that the first iterations start from; ``relative``: as of Cholesky."""
        self._rank, self._seed, self._relative = rank, seed, relative

    def numel(self, layer: Layer) -> int:
        return self._numel(layer.a) + self._numel(layer.g)

    def flops(self, size: int) -> float:
        return (ITERATIONS + 1) * size**2 * self._rank if self._cut(size) else 1.5 * size**3

    def products(self, size: int) -> int:
        return 2 * self._rank if self._cut(size) else size

    def invert(self, work: Sequence[Work], failures: Failures) -> None:
        whole, cut, names = [], [], []
        for w, dampings in zip(work, factored_dampings(work, self._relative), strict=True):
            shapes = w.layer.a, w.layer.g
            kept = torch.split(w.out, [self._numel(shape) for shape in shapes])
            for which, shape, packed, damping, part in zip("ag", shapes, (w.a, w.g), dampings, kept, strict=True):
                if shape.blocks:
                    factor = Factor(packed, shape.size, damping, part.view(shape.matrices, -1))
                    if self._cut(shape.size):
                        cut.append(factor)
                        names.append(f"{w.layer.name}.{which}")
                    else:
                        whole.append(factor)
        starts = dict(zip(map(id, cut), self._starts(cut, names), strict=True))
        for group in together(cut):
            self._decompose(group, [starts[id(factor)] for factor in group])
        invert_factors(whole, failures)

    def apply(self, layer: Layer, kept: Tensor, w: Tensor, damping: float, moments: Tensor | None = None) -> Tensor:
        of_a, of_g = torch.split(kept, [self._numel(layer.a), self._numel(layer.g)])
        w = apply_left(layer.g, w, lambda x: self._multiply(layer.g, of_g, x))
        if layer.a.blocks:
            w = apply_left(layer.a, w.transpose(1, 2), lambda x: self._multiply(layer.a, of_a, x)).transpose(1, 2)
        return w

    def _cut(self, size: int) -> bool:
        return size > 2 * self._rank

    def _numel(self, shape: FactorShape) -> int:
        return shape.matrices * (self._rank * (shape.size + 1) + 1) if self._cut(shape.size) else shape.numel

    def _parts(self, rows: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Views: U transposed, (matrices, rank, size); coefficients, (matrices, rank, 1); scales, (matrices, 1, 1)."""
        n = self._rank * size
        return rows[:, :n].view(-1, self._rank, size), rows[:, n:-1].unsqueeze(2), rows[:, -1:].unsqueeze(2)

    def _starts(self, factors: Sequence[Factor], names: Sequence[str]) -> Iterator[Tensor]:
        """The subspaces before, or those to begin with, each of shape (matrices, size, rank)."""
        before = [self._parts(factor.out, factor.size)[0].transpose(1, 2) for factor in factors]
        there = numbers([basis.any() for basis in before])
        for factor, name, basis, begun in zip(factors, names, before, there, strict=True):
            dtype = torch.promote_types(factor.packed.dtype, torch.float32)
            if begun:
                yield basis.to(dtype)
            else:
                generator = torch.Generator().manual_seed(derive(self._seed, 0, EVERY_RANK, name))
                first = torch.randn(basis.shape, generator=generator, dtype=torch.float64)
                yield sent(first, basis.device).to(dtype)

    def _decompose(self, group: Sequence[Factor], starts: Sequence[Tensor]) -> None:
        """Factors of one size."""
        full, size = unpacked(group), group[0].size
        counts = [len(factor.packed) for factor in group]
        kept = [self._parts(factor.out, size) for factor in group]
        basis = starts[0] if len(starts) == 1 else torch.cat([*starts])
        for _ in range(ITERATIONS):
            basis = torch.linalg.qr(full @ basis).Q
        d, v = torch.linalg.eigh(basis.transpose(1, 2) @ (full @ basis))
        trace = full.diagonal(dim1=1, dim2=2).sum(1)
        mean = ((trace - d.sum(1)) / (size - self._rank)).clamp(min=0).unsqueeze(1)
        found = (torch.split(x, counts) for x in (d, mean, (basis @ v).transpose(1, 2)))
        for factor, (u, coefficients, scales), d_i, mean_i, u_i in zip(group, kept, *found, strict=True):
            u.copy_(u_i)
            coefficients.copy_(((d_i - mean_i) / (d_i + factor.damping)).unsqueeze(2))
            scales.copy_((1 / (mean_i + factor.damping)).unsqueeze(2))

    def _multiply(self, shape: FactorShape, kept: Tensor, x: Tensor) -> Tensor:
        rows = kept.view(shape.matrices, -1)
        if not self._cut(shape.size):
            return symmetric.multiply(rows, x, self.scratch)
        u, coefficients, scales = (part.to(x.dtype) for part in self._parts(rows, shape.size))
        if len(u) > 1:
            return torch.baddbmm(x, u.transpose(1, 2), (u @ x) * coefficients, alpha=-1).mul_(scales)
        if x[0].is_contiguous():  # the product is laid out as x is
            seen = times_transposed(u[0], x[0].T).mul_(coefficients[0])
            lost = times_transposed(u[0].T.contiguous(), seen.T)
        else:
            seen = times_transposed(x[0].T.contiguous(), u[0]).mul_(coefficients[0].T)
            lost = times_transposed(seen, u[0].T).T
        return torch.sub(x, lost).mul_(scales)
