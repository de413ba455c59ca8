"""Nodes of a graph into classes: cross-entropy, accuracy (which is micro-averaged F1 here) and macro-averaged F1.

A step's samples are training nodes. Without ``clusters`` they are seen in the whole graph: every layer is computed for
all nodes on every rank, and a rank counts the loss of its share. With ``clusters`` the graph is cut once into many, and
a step takes some at random, with the edges among and between them (Cluster-GCN, Chiang et al. 2019, arXiv:1905.07953):
it costs what these nodes cost. It is evaluated on the whole graph.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from hpcopt.errors import JobError
from hpcopt.families import GRAPH_MODELS
from hpcopt.models.config import GraphModelConfig
from hpcopt.models.graph.graph import Graph, induced
from hpcopt.models.graph.networks import GcnConfig
from hpcopt.models.graph.partition import Method, partition
from hpcopt.shapes.context import Context
from hpcopt.shapes.graph_batch import GraphBatch
from hpcopt.shapes.workload import Better, Workload, WorkloadConfig
from hpcopt.store.graph import StoredGraph
from hpcopt.workloads.order import TrainOrder, share


class NodeClassificationConfig(WorkloadConfig):
    """Classification of the nodes of one graph, made by ``python -m hpcopt.prepare``."""

    name: Literal["node_classification"] = "node_classification"
    data: Path = Field(Path("data/wordnet"), description="folder of the graph's shards")
    batch: int = Field(
        1_000_000, ge=1, description="training nodes in one step, over all ranks; all of them, if there are no more"
    )
    clusters: int | None = Field(
        None, ge=2, description="parts that the graph is cut into; a step takes as many as have about batch nodes"
    )
    partition: Method = Field("greedy", description="how it is cut: metis needs pymetis")
    evaluate_on: Literal["test", "validation"] = Field("test", description="nodes that scores are of")
    model: Annotated[GraphModelConfig, GRAPH_MODELS] = Field(GcnConfig(), description="the network")
    allocate: bool = Field(
        True,
        description="make the network's parameters; false leaves them to a solver that shards them (gist, ultra_wide)",
    )

    @property
    def folder(self) -> Path:
        return self.data

    def build(self, context: Context) -> "NodeClassification":
        """Read the graph and make the model.

        Raises:
            DataError: the graph is missing or damaged.
            JobError: it cannot be cut so.
        """
        return NodeClassification(self, context.run_seed)


class NodeClassification(Workload):
    """The workload."""

    ahead = True

    scores: Mapping[str, Better] = {"test_loss": "lower", "test_accuracy": "higher", "test_macro_f1": "higher"}

    def __init__(self, config: NodeClassificationConfig, seed: int) -> None:
        self._stored = stored = StoredGraph(config.data)
        self._train, self._test = stored.nodes_of("train"), stored.nodes_of(config.evaluate_on)
        self.train_samples, self.test_samples = len(self._train), len(self._test)
        self.batch, self._classes = min(config.batch, self.train_samples), len(stored.classes)
        self._labels = torch.from_numpy(stored.labels)
        self._features = F.normalize(torch.from_numpy(stored.features).float())
        self._graph = Graph(torch.from_numpy(stored.indptr), torch.from_numpy(stored.indices))
        self._clusters: list[np.ndarray] | None = None
        self._order = TrainOrder(self.train_samples, self.batch, seed)
        if config.clusters is not None:
            self._cut(config.clusters, config.partition, seed)
        torch.manual_seed(seed)
        with torch.device("cpu" if config.allocate else "meta"):
            self.model: nn.Module = config.model.build(stored.features.shape[1], self._classes)

    @property
    def steps_per_epoch(self) -> int:
        return self._order.steps_per_epoch

    def verify(self, rank: int, size: int) -> None:
        self._stored.verify(rank, size)

    def train_batches(self, rank: int, size: int, start: int) -> Iterator[GraphBatch]:
        step = start
        while True:
            yield (
                self._in_the_whole(step, rank, size) if self._clusters is None else self._in_clusters(step, rank, size)
            )
            step += 1

    def test_batches(self, rank: int, size: int) -> Iterator[GraphBatch]:
        mine = torch.from_numpy(share(self._test, rank, size))
        yield GraphBatch(self._graph, self._features, mine, self._labels[mine], self.test_samples)

    def loss(self, model: nn.Module, batch: GraphBatch) -> Tensor:
        """Mean over the samples; of none, 0."""
        logits = _logits(model, batch)
        return F.cross_entropy(logits, batch.labels.to(logits.device), reduction="sum") / max(1, len(batch))

    def score(self, model: nn.Module, batch: GraphBatch) -> dict[str, Tensor]:
        logits = _logits(model, batch)
        found, labels = logits.argmax(1), batch.labels
        hit, said, true = (
            torch.bincount(some, minlength=self._classes) for some in (labels[found == labels], found, labels)
        )
        return {
            "test_loss": F.cross_entropy(logits, labels, reduction="sum"),
            "test_accuracy": hit.sum(),
            "test_macro_f1": torch.stack([hit, said, true]),
        }

    def finish(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Macro-averaged F1 is the mean of ``2 hits / (said + true)`` over the classes that a node has or is said to
        have.
        """
        means = {name: float(sums[name]) / self.test_samples for name in ("test_loss", "test_accuracy")}
        hit, said, true = sums["test_macro_f1"]
        there = said + true > 0
        return {**means, "test_macro_f1": float((2 * hit[there] / (said + true)[there]).mean())}

    def _cut(self, clusters: int, method: Method, seed: int) -> None:
        """Cut the graph, and order clusters instead of nodes."""
        of = partition(self._stored.indptr, self._stored.indices, clusters, method)
        found = [np.flatnonzero(of == number) for number in range(clusters)]
        training = np.bincount(of[self._train], minlength=clusters)
        self._clusters = [nodes for nodes, count in zip(found, training, strict=True) if count]
        taken = max(1, round(len(self._clusters) * self.batch / self.train_samples))
        if taken > len(self._clusters):
            raise JobError(f"[workload] batch = {self.batch} asks for {taken} of {len(self._clusters)} clusters")
        self._order = TrainOrder(len(self._clusters), taken, seed)
        self._is_training = np.zeros(len(of), bool)
        self._is_training[self._train] = True

    def _in_the_whole(self, step: int, rank: int, size: int) -> GraphBatch:
        targets = torch.from_numpy(self._train[self._order.indices(step, rank, size)])
        return GraphBatch(self._graph, self._features, targets, self._labels[targets], self.batch)

    def _in_clusters(self, step: int, rank: int, size: int) -> GraphBatch:
        assert self._clusters is not None
        nodes = np.sort(np.concatenate([self._clusters[c] for c in self._order.indices(step, 0, 1)]))
        graph = induced(self._stored.indptr, self._stored.indices, nodes)
        samples = np.flatnonzero(self._is_training[nodes])
        targets = torch.from_numpy(share(samples, rank, size))
        seen = torch.from_numpy(nodes)
        return GraphBatch(graph, self._features[seen], targets, self._labels[seen][targets], len(samples))


def _logits(model: nn.Module, batch: GraphBatch) -> Tensor:
    if next(model.parameters()).is_meta:  # of a dry run
        batch = batch.to(torch.device("meta"))
    logits: Tensor = model(batch.graph, batch.features)[batch.targets]
    return logits
