"""A graph as networks see it: what a node's neighbours have, summed.

In main memory a kernel of numba does the sums: on WordNet it took a third of the time of torch's product with a sparse
matrix in compressed rows at 256 and 1,024 columns, and its sums have one order, so one result. On a device the rows of
all edges are put side by side and summed in segments, which also has one result.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor


class Graph:
    """Nodes with their neighbours, in compressed rows. A row may have neighbours that are no rows themselves, and are
    numbered after them: ``sources`` gives what they have.

    Attributes:
        indptr: where each row's neighbours begin and the last one's end, shape (n + 1,), int64.
        indices: the neighbours, (e,), int64.
        degrees: of the rows, (n, 1), float32.
    """

    def __init__(self, indptr: Tensor, indices: Tensor, turned: tuple[Tensor, Tensor] | None = None) -> None:
        """Take a graph.

        Args:
            indptr, indices: see above.
            turned: the same of the graph with its edges turned round; None: it is the same.
        """
        self.indptr, self.indices, self._turned = indptr, indices, turned or (indptr, indices)
        self._kept: dict[str, tuple[Tensor, Tensor]] = {}
        self._edges: tuple[Tensor, Tensor] | None = None
        self._moved: dict[torch.device, Self] = {}

    @cached_property
    def degrees(self) -> Tensor:
        return self.indptr.diff().float()[:, None]  # when it is asked for: the graph may be on its way to a device

    def __len__(self) -> int:
        """Rows."""
        return len(self.indptr) - 1

    def to(self, device: torch.device) -> Self:
        """The graph on a device: the same one at every call."""
        return self.moved(lambda x: x.to(device), device)

    def moved(self, move: Callable[[Tensor], Tensor], device: torch.device) -> Self:
        """As ``to``, by something that moves a tensor there."""
        if self.indptr.device == device:
            return self
        if device not in self._moved:
            moved = [move(x) for x in (self.indptr, self.indices, *self._turned)]
            self._moved[device] = type(self)(moved[0], moved[1], (moved[2], moved[3]))
        return self._moved[device]

    def beside(self, x: Tensor, move: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """What nodes have, where the graph is: moved once, if the same tensor comes again."""
        if x.device == self.indptr.device:
            return x
        kept = self._kept.get("beside")
        if kept is None or kept[0] is not x:
            kept = self._kept["beside"] = (x, x.to(self.indptr.device) if move is None else move(x))
        return kept[1]

    def sources(self, x: Tensor) -> Tensor:
        """What neighbours have, shape (m, d), from what the rows have, (n, d)."""
        return x

    def sum(self, x: Tensor) -> Tensor:
        """The sum over neighbours, (n, d), of what they have."""
        total: Tensor = _NeighbourSum.apply(self.sources(x), self.indptr, self.indices, self._turned)  # type: ignore[no-untyped-call]
        return total

    def mean(self, x: Tensor) -> Tensor:
        """The mean over neighbours, (n, d); of none, 0."""
        return self._once("mean", x, lambda x: self.sum(x) / self.degrees.clamp(min=1))

    def smooth(self, x: Tensor) -> Tensor:
        """``D^-1/2 (A + I) D^-1/2 x`` of arXiv:1609.02907, (n, d), where D counts a node among its neighbours."""

        def smoothed(x: Tensor) -> Tensor:
            scaled = x * (self.degrees + 1).rsqrt()
            return (self.sum(scaled) + scaled) * (self.degrees + 1).rsqrt()

        return self._once("smooth", x, smoothed)

    def edges(self) -> tuple[Tensor, Tensor]:
        """The row and the neighbour of every edge, and of one from each row to itself, (e + n,) each."""
        if self._edges is None:  # made in main memory, as how many there are of each row is not known to a device
            own = torch.arange(len(self))
            rows = torch.cat([own.repeat_interleave(self.indptr.diff().cpu()), own]).to(self.indices.device)
            self._edges = rows, torch.cat([self.indices, own.to(self.indices.device)])
        return self._edges

    def _once(self, what: str, x: Tensor, make: Callable[[Tensor], Tensor]) -> Tensor:
        """Make it, or give it again if it was last made of this very tensor, which needs no gradient: inputs are the
        same in every step.
        """
        if x.requires_grad:
            return make(x)
        kept = self._kept.get(what)
        if kept is None or kept[0] is not x:
            kept = self._kept[what] = (x, make(x))
        return kept[1]


def induced(indptr: np.ndarray, indices: np.ndarray, nodes: np.ndarray) -> Graph:
    """The graph of some nodes, (k,), ascending, and of the edges between them; they are numbered by their places."""
    place = np.full(len(indptr) - 1, -1)
    place[nodes] = np.arange(len(nodes))
    counts = indptr[nodes + 1] - indptr[nodes]
    starts = np.repeat(indptr[nodes] - (np.cumsum(counts) - counts), counts)
    there = place[indices[starts + np.arange(len(starts))]]
    rows = np.repeat(np.arange(len(nodes)), counts)[there >= 0]
    inside = np.append(0, np.cumsum(np.bincount(rows, minlength=len(nodes))))
    return Graph(torch.from_numpy(inside), torch.from_numpy(there[there >= 0]))


class _NeighbourSum(torch.autograd.Function):
    """Sums over neighbours; their gradient sums over the turned edges."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, indptr: Tensor, indices: Tensor, turned: tuple[Tensor, Tensor]) -> Tensor:
        ctx.turned = turned
        return _summed(x, indptr, indices)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return _summed(gradients[0], *ctx.turned), None, None, None


def _summed(x: Tensor, indptr: Tensor, indices: Tensor) -> Tensor:
    rows = len(indptr) - 1
    if x.is_meta:
        return x.new_empty(rows, x.shape[1])
    if x.device.type == "cpu":
        from hpcopt.kernels.neighbours import sum_neighbours

        out = x.new_empty(rows, x.shape[1])
        sum_neighbours(indptr.numpy(), indices.numpy(), x.detach().contiguous().numpy(), out.numpy())
        return out
    total: Tensor = torch.segment_reduce(x.detach()[indices], "sum", offsets=indptr, initial=0, unsafe=True)
    return total
