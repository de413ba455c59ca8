"""A finite sum: training data that can be read by the numbers of its samples."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Samples:
    """The samples that the training loss is the mean over.

    Attributes:
        count: of all.
        batch: in the global batch of a step.
        at: of numbers below ``count``, shape (k,), int64, and of the size of the global batch that they are a part of:
            a ``Batch``.
    """

    count: int
    batch: int
    at: Callable[[np.ndarray, int], Any]
