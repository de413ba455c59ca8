"""A binary tree-LSTM (Tai et al. 2015, arXiv:1503.00075, eq. 9 to 14) over expressions, each a tree of its own."""

import torch
from torch import Tensor, nn

from hpcopt.dataflow.control import Cond, Isu, Phi
from hpcopt.dataflow.graph import Graph, Wire
from hpcopt.dataflow.many import Group, Ungroup
from hpcopt.dataflow.message import State
from hpcopt.pinned import seen

ROOT = -1  # the parent of the root


class Compose(nn.Module):
    """The state of an inner node, [h, c], from its operator and the states of its two children."""

    def __init__(self, operators: int, hidden: int) -> None:
        super().__init__()
        self.operator = nn.Embedding(operators, hidden)
        self.gates = nn.Linear(3 * hidden, 5 * hidden)

    def forward(self, operator: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """From an operator, (), int64, and states, (2 * hidden,), to a state."""
        (h1, c1), (h2, c2) = left.chunk(2), right.chunk(2)
        update, i, f1, f2, o = self.gates(torch.cat([self.operator(operator), h1, h2])).chunk(5)
        c = i.sigmoid() * update.tanh() + f1.sigmoid() * c1 + f2.sigmoid() * c2
        return torch.cat([o.sigmoid() * c.tanh(), c])


class TreeLstm(nn.Module):
    """Climbs from the leaves to the root, whose state decides the class.

    A tree of m leaves has 2 m - 1 nodes: first the leaves, then the inner nodes, each after its children.
    """

    def __init__(self, words: int, operators: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.leaf = nn.Embedding(words, 2 * hidden)
        self.compose = Compose(operators, hidden)
        self.head = nn.Linear(2 * hidden, classes)

    def forward(self, leaves: Tensor, inner: Tensor) -> Tensor:
        """From words, (m,), int64, and inner nodes, (m - 1, 3), int64, each (operator, left child, right child), to
        logits, (1, classes).
        """
        states = list(self.leaf(leaves))
        for operator, (left, right) in zip(inner[:, 0], seen(inner)[:, 1:].tolist(), strict=True):
            states.append(self.compose(operator, states[left], states[right]))
        logits: Tensor = self.head(states[-1][None])
        return logits

    def graph_shape(self, inputs: tuple[Tensor, ...]) -> tuple[int, ...]:
        """Three numbers a node: parent, whether it is the right child, operator (of a leaf 0)."""
        leaves, inner = inputs
        numbers = [[ROOT, 0, 0] for _ in range(2 * len(leaves) - 1)]
        for node, (operator, left, right) in enumerate(inner.tolist(), len(leaves)):
            numbers[node][2] = operator
            numbers[left][:2] = node, 0
            numbers[right][:2] = node, 1
        return tuple(n for three in numbers for n in three)

    def wire(self, graph: Graph) -> Wire:
        """Leaves and inner nodes meet in a Phi; two children make a Group, until there is no parent."""
        words = graph.entry(lambda instance: (instance.inputs[0],))
        rows = graph.add(Ungroup(), graph.transform("leaf", self.leaf, words))
        climbing = graph.add(Phi(), graph.add(Isu(lambda state: state.at[:1]), rows))
        top = graph.add(Cond(lambda state: int(_number(state, 0) == ROOT)), climbing).node
        pair = graph.add(
            Group(
                place=lambda state: (_number(state, 0),), count=lambda state: 2, order=lambda state: _number(state, 1)
            ),
            Wire(top, 0),
        )
        made = graph.transform("compose", self._composed, pair, module=self.compose, asks_state=True)
        graph.connect(made, climbing.node, 1)
        root = graph.add(Isu(lambda state: ()), Wire(top, 1))
        return graph.transform("head", lambda state: self.head(state[None]), root, module=self.head)

    def _composed(self, state: State, children: Tensor) -> Tensor:
        left, right = children.chunk(2)
        operator = torch.tensor(_number(state, 2), device=children.device)
        made: Tensor = self.compose(operator, left, right)
        return made


def _number(state: State, which: int) -> int:
    """One of the three numbers of the node that a message is at."""
    return state.shape[3 * state.at[0] + which]
