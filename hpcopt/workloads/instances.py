"""Workloads of instances that are drawn, not read: each is a function of the run's seed and its index."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from hpcopt.dataflow.instance import Instance, InstanceBatch, InstanceLoss
from hpcopt.shapes.workload import Better, WorkloadConfig
from hpcopt.workloads.drawn import TRAIN, DrawnWorkload

Draw = Callable[[np.random.Generator], Instance]


class InstanceConfig(WorkloadConfig):
    """How many instances, and how wide the network for them."""

    may_change: ClassVar[frozenset[str]] = frozenset({"hidden", "test"})

    batch: int = Field(20, ge=1, description="instances in one step")
    train: int = Field(4000, ge=1, description="training instances, drawn by the seed")
    test: int = Field(1000, ge=1, description="test instances, drawn by the seed")
    hidden: int = Field(64, ge=1, description="width of the network's states")


class InstanceWorkload(DrawnWorkload):
    """The workload; the target of an instance is its class."""

    samples = "instances"
    test_batch = 64

    def __init__(self, config: InstanceConfig, seed: int, draw: Draw, network: Callable[[], nn.Module]) -> None:
        """Draw instances by ``draw``, and make the network.

        Raises:
            JobError: there are fewer instances than a batch needs.
        """
        super().__init__(config.train, config.test, config.batch, seed)
        self.scores: Mapping[str, Better] = {"test_loss": "lower", "test_accuracy": "higher"}
        self.loss = InstanceLoss(F.cross_entropy)
        self._draw = draw
        torch.manual_seed(seed)
        self.model = network()

    def instance(self, split: int, index: int) -> Instance:
        """The index'th instance of a split."""
        return self._draw(np.random.default_rng([self._seed, split, index]))

    def score(self, model: nn.Module, batch: InstanceBatch) -> dict[str, Tensor]:
        pairs = [(model(*one.inputs), *one.target) for one in batch]
        logits, labels = torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])
        return {
            "test_loss": F.cross_entropy(logits, labels, reduction="sum"),
            "test_accuracy": (logits.argmax(1) == labels).sum(),
        }

    def part(self, indices: np.ndarray, global_size: int, split: int = TRAIN) -> InstanceBatch:
        return InstanceBatch(tuple(map(int, indices)), partial(self.instance, split), global_size)
