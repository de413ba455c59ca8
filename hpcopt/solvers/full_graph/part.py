"""One rank's nodes of a graph, with the neighbours that other ranks have."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from hpcopt.models.graph.graph import Graph
from hpcopt.shapes.graph_batch import GraphBatch
from hpcopt.solvers.full_graph.halo import Halo


class GraphPart(Graph):
    """Rows are this rank's nodes, ascending; after them are numbered those that other ranks have, rank by rank.

    Attributes:
        nodes: this rank's, (n,), numbers in the whole graph.
        near: by other rank, which of this rank's rows have neighbours there.
        heights: by other rank, how many of its nodes are neighbours of this rank's.
    """

    def __init__(self, whole: Graph, of: np.ndarray, rank: int, halo: Halo) -> None:
        """Take a rank's part.

        Args:
            whole: the graph, undirected.
            of: the rank that has each node, (nodes,).
            rank: this one.
            halo: what carries rows.
        """
        indptr, indices = whole.indptr.cpu().numpy(), whole.indices.cpu().numpy()
        nodes = np.flatnonzero(of == rank)
        counts = np.diff(indptr)[nodes]
        starts = np.repeat(indptr[nodes] - (np.cumsum(counts) - counts), counts)
        there = indices[starts + np.arange(len(starts))]
        rows, others = np.repeat(np.arange(len(nodes)), counts), np.unique(there[of[there] != rank])
        others = others[np.argsort(of[others], kind="stable")]
        place = np.full(len(of), -1)
        place[nodes], place[others] = np.arange(len(nodes)), len(nodes) + np.arange(len(others))
        columns = place[there]
        device = whole.indptr.device
        own = [torch.from_numpy(x).to(device) for x in _rows(rows, columns, len(nodes))]
        turned = [torch.from_numpy(x).to(device) for x in _rows(columns, rows, len(nodes) + len(others))]
        super().__init__(own[0], own[1], (turned[0], turned[1]))
        self.nodes, self._halo = torch.from_numpy(nodes).to(device), halo
        ranks = np.unique(of[others]).tolist()
        self.near = {r: torch.from_numpy(np.unique(rows[of[there] == r])).to(device) for r in ranks}
        self.heights = {r: int((of[others] == r).sum()) for r in ranks}

    def to(self, device: torch.device) -> Self:
        """The part, which stays where its graph was."""
        return self

    def sources(self, x: Tensor) -> Tensor:
        """What this rank's nodes and their neighbours elsewhere have. Collective."""
        if not self.heights:
            return x
        if not x.requires_grad:
            got = self._halo.constant({r: x[rows] for r, rows in self.near.items()}, self.heights)
            return torch.cat([x, *got.values()])
        everyone: Tensor = _Exchanged.apply(x, self, self._halo, self._halo.next_layer())  # type: ignore[no-untyped-call]
        return everyone


class _Exchanged(torch.autograd.Function):
    """Rows of neighbours; their gradients go back to the ranks that have them, which add them up in ranks' order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, part: GraphPart, halo: Halo, layer: int) -> Tensor:
        ctx.part, ctx.halo, ctx.layer = part, halo, layer
        got = halo.exchange(layer, "forward", {r: x[rows] for r, rows in part.near.items()}, part.heights)
        return torch.cat([x, *got.values()])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        part: GraphPart = ctx.part
        own, theirs = gradients[0][: len(part)].clone(), gradients[0][len(part) :]
        pieces = dict(zip(part.heights, torch.split(theirs, list(part.heights.values())), strict=True))
        heights = {r: len(rows) for r, rows in part.near.items()}
        for rank, gradient in ctx.halo.exchange(ctx.layer, "back", pieces, heights).items():
            own.index_add_(0, part.near[rank], gradient)
        return own, None, None, None


def _rows(rows: np.ndarray, columns: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Compressed rows of pairs: where each begins, (count + 1,), and the columns, ascending."""
    order = np.lexsort((columns, rows))
    return np.append(0, np.cumsum(np.bincount(rows, minlength=count))), columns[order].astype(np.int64)


@dataclass(frozen=True)
class PartBatch(GraphBatch):
    """The samples of a batch that this rank's nodes are; it may have none, and still takes part in every exchange."""

    def split(self, parts: int) -> list[Self]:
        """The batch itself: ranks go through the layers together."""
        return [self]
