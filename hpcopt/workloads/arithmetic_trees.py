"""Work out expressions: random binary trees of numbers modulo 5, with an operator at each inner node."""

from typing import Literal

import numpy as np
import torch

from hpcopt.dataflow.instance import Instance
from hpcopt.models.tree_lstm import TreeLstm
from hpcopt.shapes.context import Context
from hpcopt.workloads.instances import InstanceConfig, InstanceWorkload

NUMBERS, MOST_LEAVES = 5, 8
OPERATORS = ("sum", "max", "min")


class ArithmeticTreesConfig(InstanceConfig):
    """Trees of up to eight leaves, and a tree-LSTM that climbs each."""

    name: Literal["arithmetic_trees"] = "arithmetic_trees"

    def build(self, context: Context) -> InstanceWorkload:
        return InstanceWorkload(
            self, context.run_seed, draw, lambda: TreeLstm(NUMBERS, len(OPERATORS), self.hidden, NUMBERS)
        )


def draw(generator: np.random.Generator) -> Instance:
    """A tree: its leaves, (m,), its inner nodes, (m - 1, 3), each (operator, left, right) after its children, and its
    value, (1,).
    """
    leaves = generator.integers(NUMBERS, size=generator.integers(1, MOST_LEAVES + 1)).tolist()
    inner: list[tuple[int, int, int]] = []

    def grown(first: int, end: int) -> int:
        """The node over leaves ``first`` to ``end``."""
        if end - first == 1:
            return first
        middle = int(generator.integers(first + 1, end))
        children = grown(first, middle), grown(middle, end)
        inner.append((int(generator.integers(len(OPERATORS))), *children))
        return len(leaves) + len(inner) - 1

    grown(0, len(leaves))
    rows = torch.tensor(inner, dtype=torch.int64).view(-1, 3)
    return Instance((torch.tensor(leaves), rows), (torch.tensor([value(leaves, inner)]),))


def value(leaves: list[int], inner: list[tuple[int, int, int]]) -> int:
    """What a tree amounts to.

    >>> value([4, 3, 1], [(0, 0, 1), (1, 3, 2)])  # max((4 + 3) % 5, 1)
    2
    """
    values = list(leaves)
    for operator, left, right in inner:
        a, b = values[left], values[right]
        values.append({"sum": (a + b) % NUMBERS, "max": max(a, b), "min": min(a, b)}[OPERATORS[operator]])
    return values[-1]
