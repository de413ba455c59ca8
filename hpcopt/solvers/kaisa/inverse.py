"""From a layer's two factors to its preconditioned gradient.

Cholesky, the default: ``P = (G + sqrt(damping) / pi)^-1 W (A + sqrt(damping) pi)^-1``, where pi^2 is the mean
eigenvalue of A over that of G (Martens and Grosse 2015, arXiv:1503.05671, section 6.3): two products a step, symmetric
inverses.

Eigen: ``P = Q_G ((Q_G^T W Q_A) / (d_G d_A^T + damping)) Q_A^T``: damping exact on the Kronecker product, four products.

A method keeps what it needs of a layer in a flat tensor, which travels as it is.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from hpcopt.solvers.kaisa import root, symmetric
from hpcopt.solvers.kaisa.layers.layer import FactorShape, Layer

MORE_DAMPING = 10.0
LARGE = 640  # rows from which a matrix is inverted by halves
ATTEMPTS = 3  # in the factors' own precision; then in float64

MethodName = Literal["cholesky", "low_rank", "eigen", "ekfac"]


@dataclass
class Failures:
    """How often a factor did not invert as it was."""

    more_damping: int = 0
    float64: int = 0


class Method(Protocol):
    """How a layer's factors are inverted.

    Attributes:
        squares: matrices of a factor's size, unpacked, that are alive at once meanwhile.
        scratch: flat memory for one kept matrix unpacked, of the kept values' dtype; set while a step preconditions.
    """

    squares: int
    scratch: Tensor | None

    def numel(self, layer: Layer) -> int:
        """Values kept of a layer."""

    def invert(self, layer: Layer, a: Tensor, g: Tensor, damping: float, out: Tensor, failures: Failures) -> None:
        """Fill out, shape (numel(layer),), from packed factors."""

    def apply(self, layer: Layer, kept: Tensor, w: Tensor, damping: float) -> Tensor:
        """The preconditioned W; both of shape (batch, outputs, inputs). A method may have damped when it inverted."""

    def flops(self, size: int) -> float:
        """Operations of the matrix products that take as long as inverting one matrix of so many rows; rough."""

    def products(self, size: int) -> int:
        """Multiplications for each value of W that a factor of so many rows takes to apply."""


class Cholesky:
    """Factored damping; keeps the packed inverses of A and G."""

    squares = 3  # the factor, its root, its inverse
    scratch: Tensor | None = None

    def numel(self, layer: Layer) -> int:
        return layer.a.numel + layer.g.numel

    def flops(self, size: int) -> float:
        return 1.5 * size**3

    def products(self, size: int) -> int:
        return size

    def invert(self, layer: Layer, a: Tensor, g: Tensor, damping: float, out: Tensor, failures: Failures) -> None:
        kept_a, kept_g = _parts(layer, out)
        damping_a, damping_g = factored_damping(layer, a, g, damping)
        if layer.a.blocks:
            invert_packed(a, layer.a.size, damping_a, kept_a, failures)
        invert_packed(g, layer.g.size, damping_g, kept_g, failures)

    def apply(self, layer: Layer, kept: Tensor, w: Tensor, damping: float) -> Tensor:
        kept_a, kept_g = _parts(layer, kept)
        w = apply_left(layer.g, w, lambda x: symmetric.multiply(kept_g, x, self.scratch))
        if layer.a.blocks:
            turned = w.transpose(1, 2)
            w = apply_left(layer.a, turned, lambda x: symmetric.multiply(kept_a, x, self.scratch)).transpose(1, 2)
        return w


class Eigen:
    """Exact damping; keeps eigenvectors and eigenvalues of A and G, for each matrix (size + 1) rows of size."""

    squares = 4  # the factor, its eigenvectors, and the two that divide and conquer works in
    scratch: Tensor | None = None

    def numel(self, layer: Layer) -> int:
        return sum(_eigen_numel(shape) for shape in (layer.a, layer.g))

    def flops(self, size: int) -> float:
        return 7.5 * size**3

    def products(self, size: int) -> int:
        return 2 * size

    def invert(self, layer: Layer, a: Tensor, g: Tensor, damping: float, out: Tensor, failures: Failures) -> None:
        for shape, packed, (vectors, values) in zip((layer.a, layer.g), (a, g), self.pairs(layer, out), strict=True):
            if shape.blocks:
                d, q = _eigh(symmetric.unpack(packed, shape.size, _at_least_float32(packed.dtype)), failures)
                vectors.copy_(q)
                values.copy_(d.clamp(min=0))

    def apply(self, layer: Layer, kept: Tensor, w: Tensor, damping: float) -> Tensor:
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
        split = _eigen_numel(layer.a)
        pairs = []
        for shape, part in ((layer.a, kept[:split]), (layer.g, kept[split : split + _eigen_numel(layer.g)])):
            rows = part.view(shape.matrices, shape.size + 1, shape.size)
            pairs.append((rows[:, :-1], rows[:, -1]))
        return pairs


def factored_damping(layer: Layer, a: Tensor, g: Tensor, damping: float) -> tuple[float, float]:
    """What is added to the diagonals of A and G."""
    if not layer.a.blocks:
        return 0.0, damping
    mean_a, mean_g = (
        float(symmetric.trace(x, s.size)) / (s.matrices * s.size) for x, s in ((a, layer.a), (g, layer.g))
    )
    pi = (mean_a / mean_g) ** 0.5 if mean_a > 0 and mean_g > 0 else 1.0
    return damping**0.5 * pi, damping**0.5 / pi


def invert_packed(packed: Tensor, size: int, damping: float, out: Tensor, failures: Failures) -> None:
    """Fill out with the packed inverses of ``packed + damping``; where that is not positive definite in its own
    precision, more damping is tried, then float64, and counted.
    """
    full = symmetric.unpack(packed, size, _at_least_float32(packed.dtype))
    diagonal = full.diagonal(dim1=1, dim2=2)
    diagonal += damping
    if size == 1:
        out.copy_(full[:, 0].reciprocal())
        return
    for _ in range(ATTEMPTS):
        if _invert(full, out):
            return
        failures.more_damping += 1
        diagonal += damping * (MORE_DAMPING - 1)
        damping *= MORE_DAMPING
    values, vectors = _eigh(full.double(), failures)
    inverse = (vectors / values.clamp(min=damping).unsqueeze(1)) @ vectors.transpose(1, 2)
    symmetric.pack(inverse.to(full.dtype), out)


def _invert(full: Tensor, out: Tensor) -> bool:
    """Fill out with the packed inverses if all matrices are positive definite; give whether they are."""
    if full.shape[1] >= LARGE:
        return all(root.invert(matrix, packed) for matrix, packed in zip(full, out, strict=True))
    lower, info = torch.linalg.cholesky_ex(full)
    if not info.any():
        symmetric.pack(torch.cholesky_inverse(lower), out)
    return not info.any()


def _parts(layer: Layer, kept: Tensor) -> tuple[Tensor, Tensor]:
    """The packed matrices of A and of G, views."""
    split = layer.a.numel
    a = kept[:split].view(layer.a.matrices, -1) if split else kept[:0]
    return a, kept[split : split + layer.g.numel].view(layer.g.matrices, -1)


def apply_left(shape: FactorShape, w: Tensor, multiply: Callable[[Tensor], Tensor]) -> Tensor:
    """Multiply W, shape (batch, features, k), from the left by a factor's matrices, block by block."""
    return multiply(w.reshape(shape.matrices, shape.size, w.shape[2])).view(w.shape)


def _eigh(full: Tensor, failures: Failures) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors, in float64 if that is what it takes."""
    try:
        values, vectors = torch.linalg.eigh(full)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        failures.float64 += 1
        values, vectors = torch.linalg.eigh(full.double())
    return values, vectors


def _eigen_numel(shape: FactorShape) -> int:
    return shape.matrices * (shape.size + 1) * shape.size


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
