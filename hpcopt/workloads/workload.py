"""What the trainer knows of a workload."""

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor, nn

from hpcopt.solvers.solver import Batch


class Workload(Protocol):
    """A model with its data, loss and score. Data is split at the source: a rank reads its own samples only.

    Attributes:
        model: the network, initialised the same on all ranks.
        batch: samples in one global batch.
        train_samples, test_samples: samples in each split.
        scores: names of the figures of merit.
    """

    model: nn.Module
    batch: int
    train_samples: int
    test_samples: int
    scores: tuple[str, ...]

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

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean loss over the batch's samples."""

    def score(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Figures of merit by name, each summed over the batch's samples."""
