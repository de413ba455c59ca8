"""A figure of merit of anybody's: what it adds up over the test samples, and what it makes of the sums."""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from hpcopt.shapes.workload import Better


class Score(Protocol):
    """A number that says how good a network's outputs are. It need not be a mean over samples: a perplexity is the
    exponential of one, an area under a curve comes from two histograms.

    Attributes:
        better: which way it improves.
    """

    better: Better

    def update(self, outputs: Any, targets: Any) -> Mapping[str, Tensor]:
        """What a batch adds: tensors by name, each of one shape for every batch, which are summed over all batches and
        ranks.
        """

    def finish(self, sums: Mapping[str, Tensor]) -> float:
        """The figure of merit from the sums, float64, over all test samples."""
