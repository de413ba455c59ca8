"""KL-Shampoo: the Kronecker product nearest to the gradients' covariance in the divergence of Kullback and Leibler, and
each gradient's average whitened by it (Lin et al. 2025, arXiv:2509.03378).

    A <- average of W^T G^-1 W / outputs,   G <- average of W A^-1 W^T / inputs
    M <- momentum M + (1 - momentum) W,     P = G^(-1/2) M A^(-1/2) / (1 - momentum^t)

A and G on the right are those that the roots in use were taken of. So a step has the size of Adam's, without second
moments and without grafting. The first gradient, for which there are no roots, counts as ``A = r I`` and ``G = r I``
with r the root of its mean square: its own factors would be singular, and their roots as good as unbounded. Factors of
0, of a layer that has had no gradient but 0, have no roots either: there is no step until there are some.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from hpcopt.solvers.kaisa import symmetric
from hpcopt.solvers.kaisa.factors import Failures, Work
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

    def invert(self, work: Sequence[Work], failures: Failures) -> None:
        super().invert(work, failures)
        for w in work:
            w.out.masked_fill_(~w.a.any(), 0)  # which says that there are no roots; a device is not asked

    def apply(self, layer: Layer, kept: Tensor, w: Tensor, damping: float, moments: Tensor | None = None) -> Tensor:
        assert moments is not None
        m = moments[: w.numel()].view(w.shape)
        m.lerp_(w, 1 - self._momentum)
        moments[-1] += 1
        return super().apply(layer, kept, m / (1 - self._momentum ** moments[-1]), damping)

    def factors(self, layer: Matrix, kept: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """A and G of a gradient, packed."""
        rows, columns = w.shape[1] ** 0.5, w.shape[2] ** 0.5
        a, g = layer.factors_of(self.times_g(layer, kept, w) / rows, self.times_a(layer, kept, w) / columns)
        r = torch.where(kept.any(), 0, w.square().mean().sqrt())  # without roots both are 0 so far
        for shape, packed in ((layer.a, a), (layer.g, g)):
            place = symmetric.diagonal_index(shape.size, packed.device)
            packed.index_add_(1, place, r.expand(shape.matrices, shape.size))
        return a, g
