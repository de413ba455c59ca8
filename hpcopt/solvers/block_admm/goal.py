"""What a block's outputs should be: equal to the next auxiliary, or right about the batch.

A goal is a SUM over samples, so that the auxiliary of a sample does not feel how many others are in its batch.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from hpcopt.shapes.batch import TensorBatch


@dataclass(frozen=True)
class Match:
    """rho/2 |out - target|^2 with target = z - u: the augmented Lagrangian's term of a boundary."""

    target: Tensor
    rho: float

    @property
    def curvature(self) -> float:
        """Largest second derivative in the outputs."""
        return self.rho

    def __call__(self, out: Tensor) -> Tensor:
        """The sum over samples."""
        return 0.5 * self.rho * (out - self.target).square().sum()


@dataclass(frozen=True)
class Fit:
    """The criterion of the last block's outputs."""

    criterion: Callable[[Tensor, TensorBatch], Tensor]
    batch: TensorBatch
    curvature: float  # largest second derivative in the outputs: 1/2 for cross-entropy of logits

    def __call__(self, out: Tensor) -> Tensor:
        """The sum over samples."""
        return self.criterion(out, self.batch) * len(self.batch)


Goal = Match | Fit
