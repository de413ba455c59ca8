"""Newton-Muon: Muon on gradients times the inverse of K-FAC's A (Du and Su 2026, arXiv:2604.01472).

    W' = W (A + damping tr(A) / n I)^-1,   M <- momentum M + (1 - momentum) W',   P = scale * orthogonalized(M)

with A the mean of ``a a^T`` over the inputs a of the layer, n values each, without one for the bias. Where A is a
multiple of the identity this is Muon. A factor of more than ``max_size`` rows is a diagonal or blocks.
"""

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from hpcopt.pinned import numbers
from hpcopt.solvers.kaisa import symmetric
from hpcopt.solvers.kaisa.factors import Factor, Failures, Work, invert_factors
from hpcopt.solvers.kaisa.inverse import Cholesky, times
from hpcopt.solvers.kaisa.layers.layer import Layer
from hpcopt.solvers.kaisa.layers.matrix import Source
from hpcopt.solvers.kaisa.muon import Muon, MuonSettings


class NewtonMuonSettings(MuonSettings):
    """Muon's, and what is added to A."""

    damping: float = Field(0.2, gt=0, description="added to A's eigenvalues, over their mean")


class NewtonMuon(Muon):
    """Keeps A's packed inverse; carries the momentum."""

    source: Source = "inputs"

    def __init__(self, settings: NewtonMuonSettings, dtype: torch.dtype | None = None) -> None:
        super().__init__(settings, dtype)
        self._damping = settings.damping

    def numel(self, layer: Layer) -> int:
        return layer.a.numel

    def working(self, layer: Layer) -> int:
        return Cholesky.squares * layer.a.matrices * layer.a.size**2

    def invert(self, work: Sequence[Work], failures: Failures) -> None:
        shapes = [w.layer.a for w in work]
        traces = numbers([symmetric.trace(w.a, shape.size) for w, shape in zip(work, shapes, strict=True)])
        factors = []
        for w, shape, trace in zip(work, shapes, traces, strict=True):
            damping = self._damping * trace / shape.features / shape.batch or 1.0  # inputs may all be 0
            factors.append(Factor(w.a, shape.size, damping, w.out.view(shape.matrices, -1)))
        invert_factors(factors, failures)

    def apply(self, layer: Layer, kept: Tensor, w: Tensor, damping: float, moments: Tensor) -> Tensor:
        inverse = kept.view(layer.a.matrices, -1)
        turned = times(layer.a, inverse, w.transpose(1, 2), self.scratch).transpose(1, 2)
        return super().apply(layer, kept, turned, damping, moments)

    def refresh_flops(self, layer: Layer) -> float:
        return layer.a.matrices * Cholesky().flops(layer.a.size)

    def step_flops(self, layer: Layer) -> float:
        return super().step_flops(layer) + 2 * layer.numel * layer.a.size
