"""How far is it? Random graphs with open and closed roads, and a start and an end, whose distance is the class."""

from typing import Literal

import numpy as np
import torch

from hpcopt.dataflow.instance import Instance
from hpcopt.models.gated_graph import GatedGraph
from hpcopt.shapes.context import Context
from hpcopt.workloads.instances import InstanceConfig, InstanceWorkload

NODES = (4, 9)  # from, to below
FAR = 3  # the class of all distances from here on
OPEN, CLOSED = 0, 1
PLAIN, START, END = 0, 1, 2


class GraphDistanceConfig(InstanceConfig):
    """Graphs of 4 to 8 nodes with edges of two kinds, and a gated graph network of three rounds."""

    name: Literal["graph_distance"] = "graph_distance"

    def build(self, context: Context) -> InstanceWorkload:
        return InstanceWorkload(self, context.run_seed, draw, lambda: GatedGraph(3, 2, self.hidden, FAR, FAR - 1))


def draw(generator: np.random.Generator) -> Instance:
    """A graph: marks of its nodes, (n,), the last of them the end, its edges, (e, 3), each (source, kind, target), and
    the class, (1,): 0 for one open edge from start to end, 1 for two, 2 for more or none. Every class is as frequent.
    """
    wanted = int(generator.integers(FAR))
    while True:
        n = int(generator.integers(*NODES))
        pairs = np.argwhere((generator.random((n, n)) < 1.5 / n) & ~np.eye(n, dtype=bool))
        kinds = np.where(generator.random(len(pairs)) < 0.7, OPEN, CLOSED)
        edges = [(int(a), int(kind), int(b)) for (a, b), kind in zip(pairs, kinds, strict=True)]
        if min(distance(n, edges), FAR) == wanted + 1:
            break
    marks = torch.tensor([START, *[PLAIN] * (n - 2), END])
    rows = torch.tensor(edges, dtype=torch.int64).view(-1, 3)
    return Instance((marks, rows), (torch.tensor([wanted]),))


def distance(n: int, edges: list[tuple[int, int, int]]) -> int:
    """Open edges on the shortest way from node 0 to node n - 1; n if there is none.

    >>> distance(3, [(0, OPEN, 1), (1, OPEN, 2), (0, CLOSED, 2)])
    2
    """
    reached, steps = {0}, 0
    while n - 1 not in reached and steps < n:
        reached |= {b for a, kind, b in edges if kind == OPEN and a in reached}
        steps += 1
    return steps
