"""A batch of a graph's nodes: all nodes that are looked at, and those among them whose labels count."""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from hpcopt.models.graph.graph import Graph
from hpcopt.shapes.batch import Move


@dataclass(frozen=True)
class GraphBatch:
    """This rank's samples of one global batch, in the graph that they are seen in.

    Attributes:
        graph: of n nodes.
        features: of its nodes, shape (n, f), float32.
        targets: the samples: rows of the graph, (k,), int64.
        labels: of the targets, (k,), int64.
        global_size: samples in the batch over all ranks.
    """

    graph: Graph
    features: Tensor
    targets: Tensor
    labels: Tensor
    global_size: int

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def weight(self) -> float:
        """This rank's part of the global batch: the factor that makes its mean loss a summand of the global one."""
        return len(self) / self.global_size

    def split(self, parts: int) -> list[Self]:
        """Cut the samples into at most ``parts`` micro-batches, none of them empty, all in the same graph."""
        pairs = zip(self.targets.tensor_split(parts), self.labels.tensor_split(parts), strict=True)
        return [replace(self, targets=targets, labels=labels) for targets, labels in pairs if len(targets)]

    def to(self, device: torch.device) -> Self:
        """The batch on a device; a graph and features that come again are moved once."""
        return self.moved(lambda t: t.to(device), device)

    def moved(self, move: Move, device: torch.device) -> Self:
        """As ``to``, by something that moves a tensor there."""
        graph = self.graph.moved(move, device)
        features, targets, labels = graph.beside(self.features, move), move(self.targets), move(self.labels)
        return replace(self, graph=graph, features=features, targets=targets, labels=labels)
