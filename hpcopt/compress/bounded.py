"""Sums that are never off by more than a bound that the user gives.

All ranks round their values to multiples of one step, and the integers are added: exactly, in whatever order and on
whatever way, as in hZCCL (Huang et al., SC 2024), which adds compressed integers without opening them.
With P ranks, magnitudes up to M and a bound of E on the sum, each value may err by half a step and the finished sum
once more by float32's rounding: ``P step / 2 + 2^-24 (P M + P step / 2) <= E``.
"""

from dataclasses import dataclass
from typing import Literal, Self

from pydantic import Field, model_validator

from hpcopt.compress.codec import CodecConfig
from hpcopt.compress.finite import MOST
from hpcopt.errors import NonFiniteError

SMALL = 2.0**-100  # magnitudes below count as this: their steps must not leave the range of float32
ROUNDING = 2.0**-24  # of float32, relative
FINEST = 2.0**-22  # relative bound
MARGIN = 1 - 2.0**-20  # of the step, for what the reckoning in float64 loses
MOST_STEPS = 2**31 - 1  # of a sum, as int32


@dataclass(frozen=True)
class Grid:
    """What all ranks' values are rounded to.

    Attributes:
        step: distance of neighbours.
        own_bits, sum_bits: the most that a rank's integers, and the sum's, can take, signs included.
    """

    step: float
    own_bits: int
    sum_bits: int


class Bounded(CodecConfig):
    """Integers of one step on all ranks, in as many bits as each 64 of them need; their sum is exact."""

    name: Literal["bounded"] = "bounded"
    bound: float = Field(1e-3, gt=0, le=1e38, description="the most by which a sum may be off")
    of: Literal["largest", "sum"] = Field(
        "largest",
        description="largest: the bound is relative, times the ranks and the largest magnitude that any of them has in "
        "a bucket, so that a mean is off by at most bound times that magnitude; sum: it is an absolute number",
    )

    @model_validator(mode="after")
    def _float32_holds_it(self) -> Self:
        if self.of == "largest" and not FINEST <= self.bound <= 1:
            raise ValueError(f"a bound relative to the largest magnitude is between {FINEST:.2g} and 1: {self.bound}")
        return self

    def grid(self, largest: float, ranks: int) -> Grid:
        """The grid for magnitudes up to ``largest`` on so many ranks.

        Raises:
            NonFiniteError: on all ranks: a sum may leave the range of float32, or float32 holds no sum so exactly.
        """
        largest = max(largest, SMALL)
        share = self.bound * largest if self.of == "largest" else self.bound / ranks
        step = 2 * MARGIN * (share - ROUNDING * (largest + share))
        if (largest + share) * ranks > MOST:
            raise NonFiniteError(
                f"codec {self.name!r} was given magnitudes up to {largest:.3g}, whose sum over {ranks} ranks may leave "
                "the range of float32: lower the learning rate or clip the gradient"
            ).everywhere()
        own, total = (largest / step + 1, ranks * (largest / step + 1)) if step > 0 else (0.0, MOST_STEPS)
        if step < share or total >= MOST_STEPS:
            raise NonFiniteError(
                f"codec {self.name!r}: float32 holds sums over {ranks} ranks of magnitudes up to {largest:.3g} less "
                f"exactly than to {ranks * share:.3g}: give [exchange.codec] a wider bound, or use codec 'dense'"
            ).everywhere()
        return Grid(step, _bits(own), _bits(total))


def _bits(magnitude: float) -> int:
    """Of integers up to it, with their sign as the lowest bit."""
    return (2 * int(magnitude)).bit_length()
