"""From a layer's two factors to its preconditioned gradient.

Cholesky, the default: ``P = (G + sqrt(damping) / pi)^-1 W (A + sqrt(damping) pi)^-1``, where pi^2 is the mean
eigenvalue of A over that of G (Martens and Grosse 2015, arXiv:1503.05671, section 6.3): two products a step, symmetric
inverses.

Eigen: ``P = Q_G ((Q_G^T W Q_A) / (d_G d_A^T + damping)) Q_A^T``: damping exact on the Kronecker product, four products.

A method keeps what it needs of a layer in a flat tensor, which travels as it is.
"""

from collections.abc import Callable, Sequence
from typing import ClassVar

from torch import Tensor

from hpcopt.solvers.kaisa import symmetric
from hpcopt.solvers.kaisa.factors import (
    Factor,
    Failures,
    Work,
    decompose_factors,
    factored_dampings,
    invert_factors,
)
from hpcopt.solvers.kaisa.layers.layer import FactorShape, Layer
from hpcopt.solvers.kaisa.layers.matrix import Source


class Kfac:
    """What the ways to invert K-FAC's factors share: no state but factors and inverses, and their costs by size.

    Attributes:
        squares: matrices of a factor's size, unpacked, that are alive at once while it is inverted.
    """

    source: Source = "activations"
    natural: ClassVar[bool] = True
    whole: ClassVar[bool] = False
    squares: ClassVar[int]
    scratch: Tensor | None = None

    def flops(self, size: int) -> float:
        """Operations of the matrix products that take as long as inverting one matrix of so many rows; rough."""
        raise NotImplementedError

    def products(self, size: int) -> int:
        """Multiplications for each value of W that a factor of so many rows takes to apply."""
        raise NotImplementedError

    def carried(self, layer: Layer) -> int:
        return 0

    def working(self, layer: Layer) -> int:
        return self.squares * max(f.matrices * f.size**2 for f in (layer.a, layer.g))

    def leave(self, layer: Layer, kept: Tensor, moments: Tensor) -> None:
        return

    def enter(self, layer: Layer, kept: Tensor, moments: Tensor) -> None:
        return

    def refresh_flops(self, layer: Layer) -> float:
        return sum(f.matrices * self.flops(f.size) for f in (layer.a, layer.g))

    def step_flops(self, layer: Layer) -> float:
        return sum(2 * layer.numel * self.products(f.size) for f in (layer.a, layer.g) if f.blocks)


class Packed(Kfac):
    """Keeps a symmetric matrix for each of A and G, packed, and multiplies by them."""

    def numel(self, layer: Layer) -> int:
        return layer.factors

    def products(self, size: int) -> int:
        return size

    def apply(self, layer: Layer, kept: Tensor, w: Tensor, damping: float, moments: Tensor | None = None) -> Tensor:
        w = self.times_g(layer, kept, w)
        return self.times_a(layer, kept, w) if layer.a.blocks else w

    def times_g(self, layer: Layer, kept: Tensor, w: Tensor) -> Tensor:
        """What is kept of G times W."""
        return times(layer.g, parts(layer, kept)[1], w, self.scratch)

    def times_a(self, layer: Layer, kept: Tensor, w: Tensor) -> Tensor:
        """W times what is kept of A."""
        return times(layer.a, parts(layer, kept)[0], w.transpose(1, 2), self.scratch).transpose(1, 2)


class Cholesky(Packed):
    """Factored damping; keeps the packed inverses of A and G."""

    squares = 3  # the factor, its root, its inverse

    def __init__(self, relative: bool = False) -> None:
        """``relative``: dampings are in units of each layer's mean curvature."""
        self._relative = relative

    def flops(self, size: int) -> float:
        return 1.5 * size**3

    def invert(self, work: Sequence[Work], failures: Failures) -> None:
        factors = []
        for w, (damping_a, damping_g) in zip(work, factored_dampings(work, self._relative), strict=True):
            kept_a, kept_g = parts(w.layer, w.out)
            if w.layer.a.blocks:
                factors.append(Factor(w.a, w.layer.a.size, damping_a, kept_a))
            factors.append(Factor(w.g, w.layer.g.size, damping_g, kept_g))
        invert_factors(factors, failures)


class Eigen(Kfac):
    """Exact damping; keeps eigenvectors and eigenvalues of A and G, for each matrix (size + 1) rows of size."""

    squares = 4  # the factor, its eigenvectors, and the two that divide and conquer works in

    def numel(self, layer: Layer) -> int:
        return sum(_eigen_numel(shape) for shape in (layer.a, layer.g))

    def flops(self, size: int) -> float:
        return 7.5 * size**3

    def products(self, size: int) -> int:
        return 2 * size

    def invert(self, work: Sequence[Work], failures: Failures) -> None:
        factors = []
        for w in work:
            for shape, packed, rows in zip((w.layer.a, w.layer.g), (w.a, w.g), self._rows(w.layer, w.out), strict=True):
                if shape.blocks:
                    factors.append(Factor(packed, shape.size, 0.0, rows))
        decompose_factors(factors, failures)

    def apply(self, layer: Layer, kept: Tensor, w: Tensor, damping: float, moments: Tensor | None = None) -> Tensor:
        (q_a, d_a), (q_g, d_g) = self.pairs(layer, kept)
        w = apply_left(layer.g, w, lambda x: q_g.transpose(1, 2) @ x)
        if not layer.a.blocks:
            return apply_left(layer.g, w / (d_g.reshape(1, -1, 1) + damping), lambda x: q_g @ x)
        w = apply_left(layer.a, w.transpose(1, 2), lambda x: q_a.transpose(1, 2) @ x).transpose(1, 2)
        w = w / (d_g.reshape(layer.batch, -1, 1) * d_a.reshape(layer.batch, 1, -1) + damping)
        w = apply_left(layer.g, w, lambda x: q_g @ x)
        return apply_left(layer.a, w.transpose(1, 2), lambda x: q_a @ x).transpose(1, 2)

    def pairs(self, layer: Layer, kept: Tensor) -> list[tuple[Tensor, Tensor]]:
        """For A and for G: eigenvectors, shape (matrices, size, size), and eigenvalues, (matrices, size), views."""
        return [(rows[:, :-1], rows[:, -1]) for rows in self._rows(layer, kept)]

    def _rows(self, layer: Layer, kept: Tensor) -> list[Tensor]:
        """For A and for G, a view of shape (matrices, size + 1, size)."""
        numel_a, numel_g = (_eigen_numel(shape) for shape in (layer.a, layer.g))
        parts = kept[:numel_a], kept[numel_a : numel_a + numel_g]
        shapes = layer.a, layer.g
        return [part.view(s.matrices, s.size + 1, s.size) for part, s in zip(parts, shapes, strict=True)]


def parts(layer: Layer, kept: Tensor) -> tuple[Tensor, Tensor]:
    """The packed matrices of A and of G, views."""
    split = layer.a.numel
    a = kept[:split].view(layer.a.matrices, -1) if split else kept[:0]
    return a, kept[split : split + layer.g.numel].view(layer.g.matrices, -1)


def apply_left(shape: FactorShape, w: Tensor, multiply: Callable[[Tensor], Tensor]) -> Tensor:
    """Multiply W, shape (batch, features, k), from the left by a factor's matrices, block by block."""
    return multiply(w.reshape(shape.matrices, shape.size, w.shape[2])).view(w.shape)


def times(shape: FactorShape, packed: Tensor, w: Tensor, scratch: Tensor | None) -> Tensor:
    """A factor's packed matrices times W, as ``apply_left``."""
    return apply_left(shape, w, lambda x: symmetric.multiply(packed, x, scratch))


def _eigen_numel(shape: FactorShape) -> int:
    return shape.matrices * (shape.size + 1) * shape.size
