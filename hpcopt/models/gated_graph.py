"""A gated graph network (Li et al. 2015, arXiv:1511.05493) over small graphs, each with edges of its own."""

import torch
from torch import Tensor, nn

from hpcopt.dataflow.control import Cond, Isu, Phi
from hpcopt.dataflow.graph import Graph, Wire
from hpcopt.dataflow.many import Flatmap, Group, Place
from hpcopt.dataflow.message import State
from hpcopt.models.gated_unit import GatedUnit


class GatedGraph(nn.Module):
    """So many rounds in which nodes send along their edges, by a map for each kind of edge, and are updated by what
    comes; the state of the last node decides the class.
    """

    def __init__(self, marks: int, kinds: int, hidden: int, classes: int, rounds: int) -> None:
        super().__init__()
        self.rounds = rounds
        self.embed = nn.Embedding(marks, hidden)
        self.along = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(kinds))
        self.update = GatedUnit(hidden)
        self.head = nn.Linear(hidden, classes)

    def forward(self, marks: Tensor, edges: Tensor) -> Tensor:
        """From marks of nodes, (n,), int64, and edges, (e, 3), int64, each (source, kind, target), to logits, (1,
        classes).
        """
        h = self.embed(marks)
        ends = [edges[edges[:, 1] == kind] for kind in range(len(self.along))]
        for _ in range(self.rounds):
            sent = torch.cat([along(h[own[:, 0]]) for along, own in zip(self.along, ends, strict=True)])
            came = torch.zeros_like(h).index_add(0, torch.cat([own[:, 2] for own in ends]), sent.to(h.dtype))
            h = self.update(came, h)
        logits: Tensor = self.head(h[-1:])
        return logits

    def graph_shape(self, inputs: tuple[Tensor, ...]) -> tuple[int, ...]:
        """The edges, by kind, three numbers each."""
        _, edges = inputs
        return tuple(edges[torch.argsort(edges[:, 1], stable=True)].ravel().tolist())

    def wire(self, graph: Graph) -> Wire:
        """A loop at (round,); in a round, a message for each kind of edge at (round, kind)."""
        kinds = len(self.along)
        marks = graph.entry(lambda instance: (instance.inputs[0],))
        begun = graph.add(Isu(lambda state: (0,)), graph.transform("embed", self.embed, marks))
        loop = graph.add(Phi(), begun)
        over = graph.add(Cond(lambda state: int(state.at[0] == self.rounds)), loop).node
        h = Wire(over, 0)
        by_kind = graph.add(Cond(lambda state: state.at[1], kinds), graph.add(Flatmap(self._sources), h)).node
        along = [graph.transform(f"along.{k}", self.along[k], Wire(by_kind, k)) for k in range(kinds)]
        sent = graph.add(
            Group(place=lambda state: state.at[:1], count=lambda state: kinds, order=lambda state: state.at[1]),
            graph.add(Phi(kinds), *along),
        )
        moved = graph.transform("update", self._updated, sent, h, module=self.update, asks_state=True)
        graph.connect(graph.add(Isu(lambda state: (state.at[0] + 1,)), moved), loop.node, 1)
        last = graph.add(Isu(lambda state: ()), Wire(over, 1))
        return graph.transform("head", lambda h: self.head(h[-1:]), last, module=self.head)

    def _sources(self, state: State, h: Tensor) -> list[tuple[Place, tuple[Tensor, ...]]]:
        edges = _edges(state, h)
        return [((state.at[0], k), (h[edges[edges[:, 1] == k][:, 0]],)) for k in range(len(self.along))]

    def _updated(self, state: State, sent: Tensor, h: Tensor) -> Tensor:
        came = torch.zeros_like(h).index_add(0, _edges(state, h)[:, 2], sent.to(h.dtype))
        moved: Tensor = self.update(came, h)
        return moved


def _edges(state: State, like: Tensor) -> Tensor:
    """The instance's edges, by kind, (e, 3), int64."""
    return torch.tensor(state.shape, dtype=torch.int64, device=like.device).view(-1, 3)
