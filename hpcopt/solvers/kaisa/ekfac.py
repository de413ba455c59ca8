"""EKFAC: eigenvectors of the Kronecker factors, eigenvalues of the Fisher (George et al. 2018, arXiv:1806.03884).

In the basis Q_A (x) Q_G the best diagonal is the second moment of the samples' own gradients::

    S = M sum over samples of (Q_G^T dW_n Q_A)^2,   P = Q_G ((Q_G^T W Q_A) / (S + damping)) Q_A^T

with dW_n sample n's part of the mean loss's gradient. S is averaged like a factor from the step after its basis was
made; until then, and for layers other than linear maps and convolutions, it is the product of the factors' eigenvalues.
Every rank must know every basis, for its own samples: the fraction must be 1. Where eigenvalues coincide, as in the
null space of a factor of few rows, the basis is arbitrary, and S with it: another number of ranks, which rounds sums
otherwise, then finds another P.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from hpcopt.comm.world import World
from hpcopt.pinned import numbers
from hpcopt.solvers.kaisa.factors import TOGETHER_BYTES, Failures, Work
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

    def apply(self, layer: Layer, kept: Tensor, w: Tensor, damping: float, moments: Tensor | None = None) -> Tensor:
        if not has_moments(layer):
            return super().apply(layer, kept, w, damping)
        (q_a, _), (q_g, _) = self.pairs(layer, kept)
        inner = q_g.transpose(1, 2) @ w @ q_a / (self.moments(layer, kept) + damping)
        return q_g @ inner @ q_a.transpose(1, 2)

    def moments(self, layer: Layer, kept: Tensor) -> Tensor:
        """S, a view."""
        return kept[-1 - layer.numel : -1].view(layer.batch, layer.g.features, layer.a.features)

    def add(self, layer: Layer, kept: Tensor, batch: Tensor, decay: float, averaged: float) -> None:
        """Average in a batch's second moments, flat, after ``averaged`` others."""
        kept[-1] += 1
        new = 1 - min(1 - 1 / (averaged + 1), decay)
        self.moments(layer, kept).view(-1).lerp_(batch.to(kept.dtype), new)

    def second_moments(self, layer: Layer, kept: Tensor, x: Tensor, gradient: Tensor) -> Tensor:
        """Sum over samples of the squared gradient in the layer's basis, flat, from one use of it."""
        (q_a, _), (q_g, _) = self.pairs(layer, kept)
        total = torch.zeros(layer.batch, layer.g.features, layer.a.features, dtype=layer.dtype, device=x.device)
        for a, g in _samples(layer, x.detach(), gradient.detach()):
            squares = ((g @ q_g.to(g.dtype)).transpose(2, 3) @ (a @ q_a.to(a.dtype))).square()
            total += squares[0] if len(squares) == 1 else squares.sum(0)
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
        there = [i for i, layer in enumerate(self._layers) if has_moments(layer)]
        batches, kept = [flat[self._buffer.pieces[i]] for i in there], [self._inverses.of(i) for i in there]
        looks = [torch.stack([x.any(), x.isfinite().all(), own[-1]]) for x, own in zip(batches, kept, strict=True)]
        answers = numbers(looks)  # one question for all layers
        for i, batch, own, (used, finite, averaged) in zip(there, batches, kept, answers, strict=True):
            if used and finite:
                self._method.add(self._layers[i], own, batch, decay, averaged)

    def _zeros(self) -> Tensor:
        dtype, device = memory_of(self._layers)
        return torch.zeros(self._buffer.numel, dtype=dtype, device=device)


def has_moments(layer: Layer) -> bool:
    """Whether a layer's samples can be told apart, and its factors are dense."""
    return type(layer) in (Layer, Conv) and layer.a.blocks == layer.g.blocks == 1


def _samples(layer: Layer, x: Tensor, gradient: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Some samples at a time: their inputs, shape (samples, batch, positions, inputs), and gradients, (samples, batch,
    positions, outputs). In main memory one after the other, on a GPU as many as may be held at once.
    """
    dim = layer.options.batch_dim if x.ndim > 2 and not isinstance(layer, Conv) else 0
    together = 1 if x.is_cpu else max(1, TOGETHER_BYTES // (layer.numel * layer.dtype.itemsize))
    for a, g in zip(torch.split(x, together, dim), torch.split(gradient, together, dim), strict=True):
        if isinstance(layer, Conv):
            n, rows = len(a), layer.rows(a, g)
            a, g = (row.view(len(row), n, -1, row.shape[2]).transpose(0, 1) for row in rows)
        else:
            a, g = (rows.movedim(dim, 0).reshape(rows.shape[dim], 1, -1, rows.shape[-1]) for rows in (a, g))
        if layer.bias is not None:
            a = torch.cat([a, a.new_ones(*a.shape[:3], 1)], 3)
        yield a.to(layer.dtype), g.to(layer.dtype)
