"""How well values are told: what a batch adds up, and what the sums come to."""

from typing import ClassVar, Protocol

import torch
from torch import Tensor

from hpcopt.shapes.workload import Better

THRESHOLD = 0.5  # a member has a value above it


class Measure(Protocol):
    """One of them.

    Attributes:
        name: the last part of a score's.
        better: which way it improves.
        parts: numbers that are summed.
    """

    name: ClassVar[str]
    better: ClassVar[Better]
    parts: ClassVar[int]

    def added(self, values: Tensor, expected: Tensor) -> Tensor:
        """What some pictures add, (parts,), by their values and those that are right, (n,)."""

    def of(self, sums: Tensor) -> float:
        """The figure from sums, (parts,)."""


class Accuracy:
    """Balanced: the mean of the shares of members and of others that are told right."""

    name: ClassVar[str] = "accuracy"
    better: ClassVar[Better] = "higher"
    parts: ClassVar[int] = 4

    def added(self, values: Tensor, expected: Tensor) -> Tensor:
        member = expected > THRESHOLD
        right = (values > THRESHOLD) == member
        return torch.stack([(right & member).sum(), member.sum(), (right & ~member).sum(), (~member).sum()])

    def of(self, sums: Tensor) -> float:
        return float(sums[0] / sums[1] + sums[2] / sums[3]) / 2


class Error:
    """Squared errors as a share of the squares of the right values."""

    name: ClassVar[str] = "error"
    better: ClassVar[Better] = "lower"
    parts: ClassVar[int] = 2

    def added(self, values: Tensor, expected: Tensor) -> Tensor:
        return torch.stack([(values - expected).square().sum(), expected.square().sum()])

    def of(self, sums: Tensor) -> float:
        return float(sums[0] / sums[1])
