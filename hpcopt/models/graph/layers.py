"""Layers of graph networks. Dimensions follow from the parameters, so that one whose parameters are cut is a narrower
layer.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpcopt.models.graph.graph import Graph
from hpcopt.models.hidden import Axes, Axis

SLOPE = 0.2  # of the leaky ReLU in attention, as published


class GraphLayer(nn.Module):
    """From what nodes have, (n, inputs), to (n, outputs)."""

    def __init__(self, inputs: int, outputs: int, *, first: bool) -> None:
        """Make it.

        Args:
            inputs, outputs: values of a node.
            first: whether it sees the network's inputs: their sums over neighbours are taken before the product, once
                for all steps; elsewhere after it.
        """
        super().__init__()
        self.first = first
        self.linear = nn.Linear(inputs, outputs, bias=False)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def axes(self, inside: Axis | None, outside: Axis | None) -> Axes:
        """The hidden axes of the layer's parameters, of those of its inputs and its outputs."""
        return {"linear.weight": (outside, inside), "bias": (outside,)}

    def forward(self, graph: Graph, x: Tensor) -> Tensor:
        """A dense layer, which sees no neighbours."""
        out: Tensor = self.linear(x) + self.bias
        return out


class Convolution(GraphLayer):
    """``S x W^T + b``, with the smoothing S of Kipf and Welling 2017, arXiv:1609.02907."""

    def forward(self, graph: Graph, x: Tensor) -> Tensor:
        out = self.linear(graph.smooth(x)) if self.first else graph.smooth(self.linear(x))
        return out + self.bias


class Sage(GraphLayer):
    """``x U^T + mean(x) W^T + b`` (GraphSAGE, Hamilton et al. 2017, arXiv:1706.02216): the product of the concatenation
    ``[x, mean over neighbours]`` with ``[U, W]``, whose halves are parameters of their own.
    """

    def __init__(self, inputs: int, outputs: int, *, first: bool) -> None:
        super().__init__(inputs, outputs, first=first)
        self.own = nn.Linear(inputs, outputs, bias=False)

    def axes(self, inside: Axis | None, outside: Axis | None) -> Axes:
        return {**super().axes(inside, outside), "own.weight": (outside, inside)}

    def forward(self, graph: Graph, x: Tensor) -> Tensor:
        near = self.linear(graph.mean(x)) if self.first else graph.mean(self.linear(x))
        out: Tensor = self.own(x) + near + self.bias
        return out


class Attention(GraphLayer):
    """Weights over neighbours and the node itself from what both have (GAT, Velickovic et al. 2018, arXiv:1710.10903),
    of each head its own. It holds (e + n) times ``outputs`` values.
    """

    def __init__(self, inputs: int, outputs: int, *, heads: int, first: bool) -> None:
        super().__init__(inputs, outputs, first=first)
        self.there, self.here = (nn.Parameter(torch.empty(heads, outputs // heads)) for _ in range(2))
        for vectors in (self.there, self.here):
            nn.init.xavier_uniform_(vectors)

    def axes(self, inside: Axis | None, outside: Axis | None) -> Axes:
        heads = None if outside is None else Axis(outside.layer)
        return {**super().axes(inside, outside), "there": (heads, None), "here": (heads, None)}

    def forward(self, graph: Graph, x: Tensor) -> Tensor:
        heads = len(self.here)
        own = self.linear(x)
        rows, neighbours = graph.edges()
        everyone = graph.sources(own).view(-1, heads, own.shape[1] // heads)
        here, there = (own.view(len(own), heads, -1) * self.here).sum(2), (everyone * self.there).sum(2)
        scores = F.leaky_relu(here[rows] + there[neighbours], SLOPE)
        most = scores.new_full((len(graph), heads), -torch.inf)
        most = most.scatter_reduce(0, rows[:, None].expand_as(scores), scores.detach(), "amax")
        weights = (scores - most[rows]).exp()
        total = weights.new_zeros(len(graph), heads).index_add(0, rows, weights)
        weights = weights / total[rows]
        out: Tensor = own.new_zeros(len(graph), *everyone.shape[1:])
        out.index_add_(0, rows, weights[:, :, None] * everyone[neighbours])
        return out.flatten(1) + self.bias


class UnitNorm(nn.Module):
    """LayerNorm over a node's units, with a gain and a bias of each (arXiv:1607.06450)."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(units)), nn.Parameter(torch.zeros(units))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[1:], self.weight, self.bias)
