"""Workloads of instances that are drawn, not read: each is a function of the run's seed and its index."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from hpcopt.dataflow.instance import Instance, InstanceBatch, InstanceLoss
from hpcopt.errors import JobError
from hpcopt.shapes.samples import Samples
from hpcopt.shapes.workload import Better, Workload, WorkloadConfig
from hpcopt.workloads.order import TrainOrder, share

TRAIN, TEST = 0, 1
TEST_BATCH = 64

Draw = Callable[[np.random.Generator], Instance]


class InstanceConfig(WorkloadConfig):
    """How many instances, and how wide the network for them."""

    may_change: ClassVar[frozenset[str]] = frozenset({"hidden", "test"})

    batch: int = Field(20, ge=1, description="instances in one step")
    train: int = Field(4000, ge=1, description="training instances, drawn by the seed")
    test: int = Field(1000, ge=1, description="test instances, drawn by the seed")
    hidden: int = Field(64, ge=1, description="width of the network's states")


class InstanceWorkload(Workload):
    """The workload; the target of an instance is its class."""

    ahead = True

    def __init__(self, config: InstanceConfig, seed: int, draw: Draw, network: Callable[[], nn.Module]) -> None:
        """Draw instances by ``draw``, and make the network.

        Raises:
            JobError: there are fewer instances than a batch needs.
        """
        if config.batch > config.train:
            raise JobError(f"[workload] batch = {config.batch}, but train = {config.train} instances")
        self.batch, self.train_samples, self.test_samples = config.batch, config.train, config.test
        self.scores: Mapping[str, Better] = {"test_loss": "lower", "test_accuracy": "higher"}
        self.loss = InstanceLoss(F.cross_entropy)
        self._order, self._seed, self._draw = TrainOrder(config.train, config.batch, seed), seed, draw
        torch.manual_seed(seed)
        self.model = network()

    def instance(self, split: int, index: int) -> Instance:
        """The index'th instance of a split."""
        return self._draw(np.random.default_rng([self._seed, split, index]))

    @property
    def steps_per_epoch(self) -> int:
        return self._order.steps_per_epoch

    def train_batches(self, rank: int, size: int, start: int) -> Iterator[InstanceBatch]:
        step = start
        while True:
            yield self._at(self._order.indices(step, rank, size), self.batch)
            step += 1

    def by_index(self) -> Samples:
        return Samples(self.train_samples, self.batch, self._at)

    def test_batches(self, rank: int, size: int) -> Iterator[InstanceBatch]:
        mine = share(np.arange(self.test_samples), rank, size)
        for start in range(0, len(mine), TEST_BATCH):
            yield self._at(mine[start : start + TEST_BATCH], self.test_samples, TEST)

    def score(self, model: nn.Module, batch: InstanceBatch) -> dict[str, Tensor]:
        pairs = [(model(*one.inputs), *one.target) for one in batch]
        logits, labels = torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])
        return {
            "test_loss": F.cross_entropy(logits, labels, reduction="sum"),
            "test_accuracy": (logits.argmax(1) == labels).sum(),
        }

    def _at(self, indices: np.ndarray, global_size: int, split: int = TRAIN) -> InstanceBatch:
        return InstanceBatch(tuple(map(int, indices)), partial(self.instance, split), global_size)
