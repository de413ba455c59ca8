"""KL-Shampoo: the Kronecker product nearest to the gradients' covariance in the divergence of Kullback and Leibler, and
each gradient's average whitened by it (Lin et al. 2025, arXiv:2509.03378).

    A <- average of W^T G^-1 W / outputs,   G <- average of W A^-1 W^T / inputs
    M <- momentum M + (1 - momentum) W,     P = G^(-1/2) M A^(-1/2) / (1 - momentum^t)

A and G on the right are those that the roots in use were taken of. So a step has the size of Adam's, without second
moments and without grafting. The first gradient, for which there are no roots, counts as ``A = r I`` and ``G = r I``
with r the root of its mean square: its own factors would be singular, and their roots as good as unbounded.
"""

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from hpcopt.solvers.kaisa import symmetric
from hpcopt.solvers.kaisa.layers.layer import Layer
from hpcopt.solvers.kaisa.layers.matrix import Matrix
from hpcopt.solvers.kaisa.products import ALIGNED, aligned
from hpcopt.solvers.kaisa.shampoo import Shampoo, ShampooSettings


class KlShampooSettings(ShampooSettings):
    """How roots are taken, and momentum."""

    momentum: float = Field(0.95, ge=0, lt=1, description="decay of the gradients' average")


class KlShampoo(Shampoo):
    """Keeps the packed roots of A and G; carries M and t."""

    power = 2
    natural: ClassVar[bool] = False
    whole: ClassVar[bool] = True

    def __init__(self, settings: KlShampooSettings) -> None:
        super().__init__(settings)
        self._momentum = settings.momentum

    def carried(self, layer: Layer) -> int:
        return aligned(layer.numel) + ALIGNED

    def apply(self, layer: Layer, kept: Tensor, w: Tensor, damping: float, moments: Tensor | None = None) -> Tensor:
        assert moments is not None
        m = moments[: w.numel()].view(w.shape)
        m.lerp_(w, 1 - self._momentum)
        moments[-1] += 1
        return super().apply(layer, kept, m / (1 - self._momentum ** moments[-1]), damping)

    def factors(self, layer: Matrix, kept: Tensor, w: Tensor, made: bool) -> tuple[Tensor, Tensor]:
        """A and G of a gradient, packed; ``made`` says that there are roots."""
        if made:
            rows, columns = w.shape[1] ** 0.5, w.shape[2] ** 0.5
            return layer.factors_of(self.times_g(layer, kept, w) / rows, self.times_a(layer, kept, w) / columns)
        r = w.square().mean().sqrt()
        shapes = layer.a, layer.g
        both = [w.new_zeros(f.matrices, symmetric.packed_length(f.size)) for f in shapes]
        for shape, packed in zip(shapes, both, strict=True):
            packed[:, symmetric.diagonal_index(shape.size, packed.device)] = r
        return both[0], both[1]
