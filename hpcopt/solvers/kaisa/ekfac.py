"""EKFAC: eigenvectors of the Kronecker factors, eigenvalues of the Fisher (George et al. 2018, arXiv:1806.03884).

In the basis Q_A (x) Q_G the best diagonal is the second moment of the samples' own gradients::

    S = M sum over samples of (Q_G^T dW_n Q_A)^2,   P = Q_G ((Q_G^T W Q_A) / (S + damping)) Q_A^T

with dW_n sample n's part of the mean loss's gradient. S is averaged like a factor from the step after its basis was
made; until then, and for layers other than linear maps and convolutions, it is the product of the factors' eigenvalues.
Every rank must know every basis, for its own samples: the fraction must be 1. Where eigenvalues coincide, as in the
null space of a factor of few rows, the basis is arbitrary, and S with it: another number of ranks, which rounds sums
otherwise, then finds another P.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from hpcopt.comm.world import World
from hpcopt.solvers.kaisa.factors import Failures, Work
from hpcopt.solvers.kaisa.inverse import Eigen
from hpcopt.solvers.kaisa.layers.conv import Conv
from hpcopt.solvers.kaisa.layers.layer import Layer, memory_of
from hpcopt.solvers.kaisa.plan import Buffer
from hpcopt.solvers.kaisa.refresh import Inverses


class Ekfac(Eigen):
    """Keeps what Eigen keeps, then S, shape (batch, outputs, inputs), and how many batches it has averaged."""

    def numel(self, layer: Layer) -> int:
        return super().numel(layer) + (layer.numel + 1 if has_moments(layer) else 0)

    def invert(self, work: Sequence[Work], failures: Failures) -> None:
        super().invert(work, failures)
        for layer, out in ((w.layer, w.out) for w in work if has_moments(w.layer)):
            (_, d_a), (_, d_g) = self.pairs(layer, out)
            self.moments(layer, out).copy_(d_g.reshape(layer.batch, -1, 1) * d_a.reshape(layer.batch, 1, -1))
            out[-1] = 0

    def apply(self, layer: Layer, kept: Tensor, w: Tensor, damping: float) -> Tensor:
        if not has_moments(layer):
            return super().apply(layer, kept, w, damping)
        (q_a, _), (q_g, _) = self.pairs(layer, kept)
        inner = q_g.transpose(1, 2) @ w @ q_a / (self.moments(layer, kept) + damping)
        return q_g @ inner @ q_a.transpose(1, 2)

    def moments(self, layer: Layer, kept: Tensor) -> Tensor:
        """S, a view."""
        return kept[-1 - layer.numel : -1].view(layer.batch, layer.g.features, layer.a.features)

    def add(self, layer: Layer, kept: Tensor, batch: Tensor, decay: float) -> None:
        """Average in a batch's second moments, flat."""
        if torch.isfinite(batch).all():
            kept[-1] += 1
            new = 1 - min(1 - 1 / float(kept[-1]), decay)
            self.moments(layer, kept).view(-1).lerp_(batch.to(kept.dtype), new)

    def second_moments(self, layer: Layer, kept: Tensor, x: Tensor, gradient: Tensor) -> Tensor:
        """Sum over samples of the squared gradient in the layer's basis, flat, from one use of it."""
        (q_a, _), (q_g, _) = self.pairs(layer, kept)
        total = torch.zeros(layer.batch, layer.g.features, layer.a.features, dtype=layer.dtype, device=x.device)
        for a, g in _samples(layer, x.detach(), gradient.detach()):
            own = (g @ q_g.to(g.dtype)).transpose(1, 2) @ (a @ q_a.to(a.dtype))
            total += own.square()
        return total.flatten()


class BatchMoments:
    """S of a batch: added up while the model runs, summed over the ranks, and averaged into what Ekfac keeps."""

    def __init__(self, method: Ekfac, layers: Sequence[Layer], inverses: Inverses, buffer: Buffer) -> None:
        """``buffer`` is that of the layers' gradients, as which their moments are laid out."""
        self._method, self._layers, self._inverses, self._buffer = method, layers, inverses, buffer
        self._flat: Tensor | None = None

    def record(self, layer: Layer, x: Tensor, gradient: Tensor) -> None:
        """Add one use of a layer, if it has a basis yet."""
        if self._inverses.made and has_moments(layer):
            if self._flat is None:
                self._flat = self._zeros()
            i = self._layers.index(layer)
            self._flat[self._buffer.pieces[i]] += self._method.second_moments(layer, self._inverses.of(i), x, gradient)

    def average(self, world: World, scale: float, decay: float) -> None:
        """Average in what was recorded since the last time, times scale. Collective: one all-reduce."""
        if not self._inverses.made:
            return
        flat, self._flat = self._flat, None
        if flat is None:
            flat = self._zeros()
        world.all_reduce(flat.mul_(scale))
        for i, layer in enumerate(self._layers):
            batch = flat[self._buffer.pieces[i]]
            if has_moments(layer) and batch.any():
                self._method.add(layer, self._inverses.of(i), batch, decay)

    def _zeros(self) -> Tensor:
        dtype, device = memory_of(self._layers)
        return torch.zeros(self._buffer.numel, dtype=dtype, device=device)


def has_moments(layer: Layer) -> bool:
    """Whether a layer's samples can be told apart, and its factors are dense."""
    return type(layer) in (Layer, Conv) and layer.a.blocks == layer.g.blocks == 1


def _samples(layer: Layer, x: Tensor, gradient: Tensor) -> list[tuple[Tensor, Tensor]]:
    """For each sample: its inputs, shape (batch, positions, inputs), and gradients, (batch, positions, outputs)."""
    if isinstance(layer, Conv):
        rows = [layer.rows(part, g) for part, g in zip(torch.split(x, 1), torch.split(gradient, 1), strict=True)]
    else:
        dim = layer.options.batch_dim if x.ndim > 2 else 0
        parts = zip(x.unbind(dim), gradient.unbind(dim), strict=True)
        rows = [(a.reshape(1, -1, a.shape[-1]), g.reshape(1, -1, g.shape[-1])) for a, g in parts]
    if layer.bias is not None:
        rows = [(torch.cat([a, a.new_ones(*a.shape[:2], 1)], 2), g) for a, g in rows]
    return [(a.to(layer.dtype), g.to(layer.dtype)) for a, g in rows]
