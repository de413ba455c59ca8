"""The contract holds for our workloads and for those of others; it finds what breaks it."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hpcopt.models.mlp import MlpConfig
from hpcopt.prepare import prepare
from hpcopt.shapes.workload import Workload, WorkloadConfig
from hpcopt.testing.workload import check_workload
from hpcopt.workloads.image_classification import ImageClassificationConfig
from hpcopt.workloads.own.workload import TorchConfig


@pytest.fixture
def mine(monkeypatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "workloads" / "own")
    yield
    sys.modules.pop("mine", None)


@pytest.mark.parametrize("train", ["mine:Table", "mine:Numbers", "mine:Resumable", "mine:Skipping"])
def test_own_data(mine, train):
    scores = ("accuracy", "mine:WorstSample")
    check_workload(TorchConfig(network="mine:Net", train=train, test="mine:Table", batch=11, scores=scores))


def test_images(tmp_path):
    prepare("digits", tmp_path)
    check_workload(
        ImageClassificationConfig(data=tmp_path / "digits", batch=200, model=MlpConfig(hidden=(8,))), steps=9
    )


@dataclass(frozen=True)
class Graphs:
    """Graphs of different sizes, as one: features of nodes, edges, and which graph a node is in."""

    nodes: Tensor
    edges: Tensor
    graph: Tensor
    labels: Tensor
    global_size: int

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def weight(self) -> float:
        return len(self) / self.global_size

    def split(self, parts: int) -> list["Graphs"]:
        return [self._of(numbers) for numbers in torch.arange(len(self)).tensor_split(parts) if len(numbers)]

    def to(self, device: torch.device) -> "Graphs":
        moved = {name: getattr(self, name).to(device) for name in ("nodes", "edges", "graph", "labels")}
        return replace(self, **moved)

    def _of(self, numbers: Tensor) -> "Graphs":
        inside = torch.isin(self.graph, numbers)
        new = inside.cumsum(0) - 1
        edges = new[self.edges[:, inside[self.edges[0]]]]
        return Graphs(
            self.nodes[inside], edges, self.graph[inside] - numbers[0], self.labels[numbers], self.global_size
        )


class Convolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, batch: Graphs) -> Tensor:
        heard = torch.zeros_like(batch.nodes).index_add(0, batch.edges[1], batch.nodes[batch.edges[0]])
        sums = torch.zeros(len(batch), 3).index_add(0, batch.graph, batch.nodes + heard)
        return self.layer(sums)


class GraphsConfig(WorkloadConfig):
    own_draws: bool = False

    def build(self, context):
        return GraphWorkload(self, context.run_seed)


class GraphWorkload(Workload):
    """An endless stream of graphs, whose length of an epoch nobody knows."""

    train_samples, test_samples, scores = None, 9, {"test_loss": "lower"}

    def __init__(self, config: GraphsConfig, seed: int) -> None:
        self.batch, self._seed, self._own_draws = config.batch, seed, config.own_draws
        torch.manual_seed(seed)
        self.model = Convolution()

    def train_batches(self, rank, size, start):
        for step in count(start):
            mine = np.array_split(np.arange(self.batch), size)[rank]
            yield self._made([(step, int(i)) for i in mine], self.batch, rank if self._own_draws else 0)

    def test_batches(self, rank, size):
        mine = np.array_split(np.arange(self.test_samples), size)[rank]
        if len(mine):
            yield self._made([(-1, int(i)) for i in mine], self.test_samples, 0)

    def _made(self, numbers, global_size: int, salt: int) -> Graphs:
        nodes, edges, graph, labels, first = [], [], [], [], 0
        for place, (step, number) in enumerate(numbers):
            draw = np.random.default_rng([self._seed, step + 1, number, salt])
            n = int(draw.integers(2, 6))
            nodes.append(torch.from_numpy(draw.standard_normal((n, 3))).float())
            edges.append(torch.from_numpy(draw.integers(0, n, (2, 2 * n))) + first)
            graph += [place] * n
            labels.append(n % 2)
            first += n
        return Graphs(torch.cat(nodes), torch.cat(edges, 1), torch.tensor(graph), torch.tensor(labels), global_size)

    def loss(self, model, batch):
        return nn.functional.cross_entropy(model(batch), batch.labels)

    def score(self, model, batch):
        return {"test_loss": self.loss(model, batch) * len(batch)}


def test_graphs_in_a_stream():
    check_workload(GraphsConfig(batch=11))


def test_batches_that_depend_on_the_ranks_are_found():
    with pytest.raises(AssertionError, match=r"the loss of batch 0 is .* on 2 ranks"):
        check_workload(GraphsConfig(batch=11, own_draws=True))


class ExperienceConfig(WorkloadConfig):
    forgets: bool = False

    def build(self, context):
        return Experience(self, context.run_seed)


class Experience(GraphWorkload):
    """Each batch follows from where the policy led so far: a state that only a checkpoint can restore."""

    def __init__(self, config: ExperienceConfig, seed: int) -> None:
        super().__init__(GraphsConfig(batch=config.batch), seed)
        self._forgets, self._place = config.forgets, torch.zeros(3)

    def train_batches(self, rank, size, start):
        for batch in super().train_batches(rank, size, start):
            with torch.no_grad():
                self._place = self._place + self.model.layer.weight.sum(0)
            yield replace(batch, nodes=batch.nodes + self._place)

    def state_dict(self):
        return None if self._forgets else {"place": self._place}

    def load_state_dict(self, parts):
        if not self._forgets:
            self._place = parts[0]["place"]


def test_experience_that_depends_on_the_policy():
    check_workload(ExperienceConfig(batch=11))


def test_a_state_that_is_not_saved_is_found():
    with pytest.raises(AssertionError, match="batches from step 3 on are others"):
        check_workload(ExperienceConfig(batch=11, forgets=True))
