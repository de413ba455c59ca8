"""A small classification problem, cut into batches as the trainer does."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpcopt.shapes.batch import TensorBatch
from hpcopt.shapes.loss import OutputLoss
from hpcopt.shapes.samples import Samples
from hpcopt.shapes.solver import Task

FEATURES, CLASSES = 6, 3


def network() -> nn.Sequential:
    """Three dense layers, the same parameters at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, CLASSES))


def flat(model: nn.Module) -> Tensor:
    """A copy of all parameters as one vector."""
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


@dataclass(frozen=True)
class Problem:
    """Samples of Gaussian features whose class a linear map decides.

    Attributes:
        batch: samples in a global batch; 11 is ragged on any number of ranks.
        samples: in all; every batch takes the next ones, round and round.
        model: makes the network; called once, before there are ranks: as threads they would share torch's generator.
        dtype: of parameters and features.
    """

    batch: int = 11
    samples: int = 44
    model: Callable[[], nn.Module] = network
    dtype: torch.dtype = torch.float32
    _network: nn.Module = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_network", self.model())

    def task(self) -> Task:
        """A fresh model and the loss, cross-entropy."""
        loss = OutputLoss(
            inputs=lambda batch: batch.tensors["x"],
            criterion=lambda logits, batch: F.cross_entropy(logits, batch.tensors["labels"]),
            example=torch.zeros(1, FEATURES, dtype=self.dtype),
        )
        return Task(copy.deepcopy(self._network).to(self.dtype), loss, Samples(self.samples, self.batch, self.at))

    def at(self, indices: np.ndarray, whole: int) -> TensorBatch:
        """Samples by number, as a part of a batch of ``whole``."""
        x, labels = self._data()
        mine = torch.from_numpy(indices)
        return TensorBatch({"x": x[mine], "labels": labels[mine]}, mine, whole)

    def batches(self, rank: int, size: int, steps: int, first: int = 0) -> list[TensorBatch]:
        """A rank's parts of ``steps`` batches from a step on: contiguous shares that differ by at most one sample."""
        wholes = [np.arange(step * self.batch, (step + 1) * self.batch) for step in range(first, first + steps)]
        return [self.at(np.array_split(whole % self.samples, size)[rank], self.batch) for whole in wholes]

    def _data(self) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(self.samples, FEATURES, generator=generator)
        labels = (x @ torch.randn(FEATURES, CLASSES, generator=generator)).argmax(1)
        return x.to(self.dtype), labels
