"""SOAP: Adam in the eigenbasis of Shampoo's factors (Vyas et al. 2024, arXiv:2409.11321).

With A and G the averages of ``W^T W`` and ``W W^T``, and Q_A and Q_G their eigenvectors::

    W' = Q_G^T W Q_A,   M <- beta1 M + (1 - beta1) W',   V <- beta2 V + (1 - beta2) W'^2
    P = Q_G (M / (sqrt(V) + eps)) Q_A^T sqrt(1 - beta2^t) / (1 - beta1^t)

A refresh takes one step of subspace iteration, ``Q <- qr(A Q)``, with columns in the order of their eigenvalues during
it; each stays where it was, so that V need not be told. M is turned from the old basis into the new one. The first
gradient makes a basis and no step: in its own basis it is diagonal, and all else that Adam would bring to full size is
what rounding left.

A factor of more than ``max_size`` rows has no basis: that side is left as it is. So is, with ``sides = "short"``, one
that is at least twice as long as the other (the paper's section 7.2 has one side alone, of all matrices): of a matrix
of n and 4n rows it would take four fifths of the products, and nearly all of a refresh.
"""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from hpcopt.config import Config
from hpcopt.pinned import numbers
from hpcopt.solvers.kaisa.factors import Factor, Failures, Work, eigh, together, unpacked
from hpcopt.solvers.kaisa.inverse import apply_left
from hpcopt.solvers.kaisa.layers.layer import FactorShape, Layer
from hpcopt.solvers.kaisa.layers.matrix import Source
from hpcopt.solvers.kaisa.products import ALIGNED, aligned, times_transposed

Decay = Annotated[float, Field(ge=0, lt=1)]


class SoapSettings(Config):
    """Adam's."""

    betas: tuple[Decay, Decay] = Field((0.95, 0.95), description="decay of the first and the second moment")
    eps: float = Field(1e-8, gt=0, description="added to the square root of the second moment")
    factors: Literal["shampoo", "kfac"] = Field(
        "shampoo", description="whose eigenvectors: of averages over gradients, or over inputs and outputs' gradients"
    )
    sides: Literal["both", "short"] = Field(
        "both", description="short: a side at least twice as long as the other has no basis; with shampoo's factors"
    )

    @model_validator(mode="after")
    def _sides_are_of_gradients(self) -> "SoapSettings":
        if self.sides == "short" and self.factors == "kfac":
            raise ValueError('sides = "short" is for factors of gradients: leave it, or factors = "kfac", out')
        return self


class Soap:
    """Keeps Q_A^T and Q_G^T; carries M, V and t, the steps that were asked for so far."""

    source: Source
    natural: ClassVar[bool] = False
    whole: ClassVar[bool] = True
    scratch: Tensor | None = None

    def __init__(self, settings: SoapSettings) -> None:
        self._settings = settings
        self.source = "activations" if settings.factors == "kfac" else "gradients"

    def numel(self, layer: Layer) -> int:
        return _numel(layer.a) + _numel(layer.g)

    def carried(self, layer: Layer) -> int:
        return 2 * aligned(layer.numel) + ALIGNED

    def working(self, layer: Layer) -> int:
        return 4 * max(_numel(layer.a), _numel(layer.g))  # the factor, its basis, their product, what QR makes of it

    def invert(self, work: Sequence[Work], failures: Failures) -> None:
        factors = []
        for w in work:
            bases = zip((w.layer.a, w.layer.g), (w.a, w.g), self._bases(w.layer, w.out), strict=True)
            factors += [Factor(packed, shape.size, 0.0, rows) for shape, packed, rows in bases if rows is not None]
        begun = dict(zip(map(id, factors), numbers([f.out.any() for f in factors]), strict=True))
        for group in together([f for f in factors if begun[id(f)]]):
            _turn(group)
        for group in together([f for f in factors if not begun[id(f)]]):
            _spread(group, eigh(unpacked(group), failures)[1])

    def apply(self, layer: Layer, kept: Tensor, w: Tensor, damping: float, moments: Tensor) -> Tensor:
        (beta1, beta2), eps = self._settings.betas, self._settings.eps
        m, v = (self._moment(layer, moments, i) for i in (0, 1))
        begun = moments[-1].clamp(max=1)  # a device is not asked
        t = moments[-1].clamp(min=1)
        turned = self._into_basis(layer, kept, w)
        m.lerp_(turned, (1 - beta1) * begun)
        step = turned.square()
        v.lerp_(step, (1 - beta2) * begun)
        torch.div(m, torch.sqrt(v, out=step).add_(eps), out=step)
        step *= begun * (1 - beta2**t).sqrt() / (1 - beta1**t)
        moments[-1] += 1
        return self._out_of_basis(layer, kept, step)

    def leave(self, layer: Layer, kept: Tensor, moments: Tensor) -> None:
        m = self._moment(layer, moments, 0)
        m.copy_(self._out_of_basis(layer, kept, m))

    def enter(self, layer: Layer, kept: Tensor, moments: Tensor) -> None:
        m = self._moment(layer, moments, 0)
        m.copy_(self._into_basis(layer, kept, m))

    def refresh_flops(self, layer: Layer) -> float:
        return sum(6.0 * f.matrices * f.size**3 for f in (layer.a, layer.g) if f.size > 1)

    def step_flops(self, layer: Layer) -> float:
        return sum(4.0 * layer.numel * f.size for f in (layer.a, layer.g) if f.size > 1)

    def _bases(self, layer: Layer, kept: Tensor) -> list[Tensor | None]:
        """Of A and of G, the eigenvectors in rows, shape (matrices, size, size), views; None for a diagonal factor."""
        parts = torch.split(kept, [_numel(layer.a), _numel(layer.g)])
        shapes = layer.a, layer.g
        return [
            p[: s.matrices * s.size**2].view(s.matrices, s.size, s.size) if s.size > 1 else None
            for s, p in zip(shapes, parts, strict=True)
        ]

    def _moment(self, layer: Layer, moments: Tensor, which: int) -> Tensor:
        start = which * aligned(layer.numel)
        return moments[start : start + layer.numel].view(layer.batch, layer.outputs, layer.inputs)

    def _into_basis(self, layer: Layer, kept: Tensor, w: Tensor) -> Tensor:
        rows_a, rows_g = self._bases(layer, kept)
        w = w if rows_a is None else _right(layer.a, rows_a, w)
        return w if rows_g is None else _left(layer.g, rows_g, w)

    def _out_of_basis(self, layer: Layer, kept: Tensor, w: Tensor) -> Tensor:
        rows_a, rows_g = self._bases(layer, kept)
        w = w if rows_a is None else _right(layer.a, rows_a.transpose(1, 2), w)
        return w if rows_g is None else _left(layer.g, rows_g.transpose(1, 2), w)


def _numel(shape: FactorShape) -> int:
    return aligned(shape.matrices * shape.size**2) if shape.size > 1 else 0


def _left(shape: FactorShape, matrices: Tensor, w: Tensor) -> Tensor:
    """The matrices, a block of rows each, times W, shape (batch, n, m)."""
    if len(matrices) == 1:
        return times_transposed(matrices[0], w[0].T).unsqueeze(0)
    return apply_left(shape, w, lambda x: matrices @ x)


def _right(shape: FactorShape, matrices: Tensor, w: Tensor) -> Tensor:
    """W times the transposed matrices, a block of columns each."""
    if len(matrices) == 1:
        return times_transposed(w[0], matrices[0]).unsqueeze(0)
    return apply_left(shape, w.transpose(1, 2), lambda x: matrices @ x).transpose(1, 2)


def _turn(group: Sequence[Factor]) -> None:
    """One step of subspace iteration for factors of one size."""
    full = unpacked(group)
    basis = torch.cat([f.out for f in group]).to(full.dtype).transpose(1, 2)
    product = full @ basis
    order = (basis * product).sum(1, keepdim=True).argsort(2, descending=True)
    q = torch.linalg.qr(product.gather(2, order.expand_as(product))).Q
    _spread(group, q.gather(2, order.argsort(2).expand_as(q)))


def _spread(group: Sequence[Factor], bases: Tensor) -> None:
    for factor, q in zip(group, torch.split(bases, [len(f.packed) for f in group]), strict=True):
        factor.out.copy_(q.transpose(1, 2))
