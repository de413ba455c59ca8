"""What the trainer knows of a workload."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import Field
from torch import Tensor, nn

from hpcopt.config import Choice
from hpcopt.shapes.batch import Batch
from hpcopt.shapes.context import Context
from hpcopt.shapes.loss import Loss

Better = Literal["higher", "lower"]


class Workload(Protocol):
    """A model with its data, loss and score. Data is split at the source: a rank reads its own samples only.

    Attributes:
        model: the network, initialised the same on all ranks.
        batch: samples in one global batch.
        train_samples, test_samples: samples in each split.
        scores: which direction is better, of each figure of merit by name, in the order in which they are told.
    """

    model: nn.Module
    batch: int
    train_samples: int
    test_samples: int
    scores: Mapping[str, Better]

    @property
    def steps_per_epoch(self) -> int:
        """Global batches in one pass over the training samples; an incomplete last one is left out."""

    def verify(self, rank: int, size: int) -> None:
        """Check this rank's share of the data files.

        Raises:
            DataError: a file is damaged.
        """

    def train_batches(self, rank: int, size: int, start: int) -> Iterator[Batch]:
        """Give the rank-th of size parts of every global batch, for ever, from step ``start`` on. A sample always comes
        in the same part.
        """

    def test_batches(self, rank: int, size: int) -> Iterator[Batch]:
        """Give this rank's part of the test samples, once; it may be empty."""

    @property
    def loss(self) -> Loss:
        """Of a model and a batch: the mean over the batch's samples."""

    def score(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        """Figures of merit by name, each summed over the batch's samples."""


class WorkloadConfig(Choice, ABC):
    """What is trained: a model, its data, its loss and its scores."""

    batch: int = Field(ge=1, description="samples in one step, over all ranks")

    @property
    def folder(self) -> Path | None:
        """The folder of a data set that hpcopt may know how to make, if the data are such a set."""
        return None

    @abstractmethod
    def build(self, context: Context) -> Workload:
        """Open the data and make the model. What is drawn at random comes from ``context``'s seeds.

        Raises:
            DataError: the data are missing, damaged, or not what the workload needs.
            JobError: the settings do not suit the data.
        """
