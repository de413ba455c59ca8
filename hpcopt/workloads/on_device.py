"""A workload whose model and batches are on another device than the one it makes them on.

Workloads make everything in main memory, so that parameters begin the same, and batches are the same, on any device.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from hpcopt.shapes.batch import Batch
from hpcopt.shapes.loss import Loss, OutputLoss
from hpcopt.shapes.samples import Samples
from hpcopt.shapes.solver import Tree
from hpcopt.shapes.workload import Workload


def on_device(workload: Workload, device: torch.device) -> Workload:
    """The workload on a device; its model moves there."""
    return workload if device.type == "cpu" else WorkloadOnDevice(workload, device)


class WorkloadOnDevice(Workload):
    """The workload."""

    def __init__(self, inner: Workload, device: torch.device) -> None:
        self._inner, self._device = inner, device
        self.model = inner.model.to(device)
        self.batch, self.scores = inner.batch, inner.scores
        self.train_samples, self.test_samples = inner.train_samples, inner.test_samples
        loss = inner.loss
        self.loss: Loss = replace(loss, example=loss.example.to(device)) if isinstance(loss, OutputLoss) else loss

    @property
    def steps_per_epoch(self) -> int | None:
        return self._inner.steps_per_epoch

    def verify(self, rank: int, size: int) -> None:
        self._inner.verify(rank, size)

    def train_batches(self, rank: int, size: int, start: int) -> Iterator[Batch]:
        return (batch.to(self._device) for batch in self._inner.train_batches(rank, size, start))

    def by_index(self) -> Samples | None:
        inner = self._inner.by_index()
        if inner is None:
            return None
        return replace(inner, at=lambda indices, whole: inner.at(indices, whole).to(self._device))

    def test_batches(self, rank: int, size: int) -> Iterator[Batch]:
        return (batch.to(self._device) for batch in self._inner.test_batches(rank, size))

    def score(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        return self._inner.score(model, batch)

    def finish(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        return self._inner.finish(sums)

    def state_dict(self) -> Tree:
        return self._inner.state_dict()

    def load_state_dict(self, parts: Sequence[Tree]) -> None:
        self._inner.load_state_dict(parts)
