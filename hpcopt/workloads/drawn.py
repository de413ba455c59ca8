"""Workloads whose samples are drawn, not read: each is a function of the run's seed and its number, so any rank draws
its own.
"""

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np

from hpcopt.errors import JobError
from hpcopt.shapes.samples import Samples
from hpcopt.shapes.workload import Workload
from hpcopt.workloads.order import TrainOrder, share

TRAIN, TEST = 0, 1


class DrawnWorkload(Workload):
    """Batches of samples by their numbers; a class of it draws them, in ``part``."""

    ahead = True
    samples: ClassVar[str] = "samples"  # what a message calls them
    test_batch: ClassVar[int] = 256

    def __init__(self, train: int, test: int, batch: int, seed: int) -> None:
        """So many samples to train on and to test on.

        Raises:
            JobError: there are fewer than a batch needs.
        """
        if batch > train:
            raise JobError(f"[workload] batch = {batch}, but train = {train} {self.samples}")
        self.batch, self.train_samples, self.test_samples = batch, train, test
        self._order, self._seed = TrainOrder(train, batch, seed), seed

    @abstractmethod
    def part(self, indices: np.ndarray, global_size: int, split: int = TRAIN) -> Any:
        """Samples of a split by their numbers, (n,), as a part of a global batch."""

    @property
    def steps_per_epoch(self) -> int:
        return self._order.steps_per_epoch

    def train_batches(self, rank: int, size: int, start: int) -> Iterator[Any]:
        step = start
        while True:
            yield self.part(self._order.indices(step, rank, size), self.batch)
            step += 1

    def by_index(self) -> Samples:
        return Samples(self.train_samples, self.batch, self.part)

    def test_batches(self, rank: int, size: int) -> Iterator[Any]:
        mine = share(np.arange(self.test_samples), rank, size)
        for start in range(0, len(mine), self.test_batch):
            yield self.part(mine[start : start + self.test_batch], self.test_samples, TEST)
