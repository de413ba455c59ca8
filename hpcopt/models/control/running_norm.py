"""Observations scaled by the mean and the variance of all that were seen so far.

The statistics change only when they are told to. What a rank has seen is a vector of sums, so that ranks add theirs and
all hold the same bits afterwards::

    norm.merge(world.all_reduce(norm.moments(observations)))
"""

import torch
from torch import Tensor, nn

SMALLEST_VARIANCE = 1e-8


class RunningNorm(nn.Module):
    """Begins as if one observation of mean 0 and variance 1 had been seen.

    Attributes:
        count: observations seen, and that one; float64.
        mean: (width,), float64.
        squares: sums of squared deviations from the mean, (width,), float64.
    """

    count: Tensor
    mean: Tensor
    squares: Tensor
    shift: Tensor
    scale: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.ones((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(width, dtype=torch.float64))
        self.register_buffer("squares", torch.ones(width, dtype=torch.float64))
        self.register_buffer("shift", torch.zeros(width))  # the mean, and one over the deviation, as forward uses them
        self.register_buffer("scale", torch.ones(width))

    def forward(self, observations: Tensor) -> Tensor:
        """Scale (..., width), float32; the statistics stay."""
        return (observations - self.shift) * self.scale

    @torch.no_grad()
    def moments(self, observations: Tensor) -> Tensor:
        """What to add for new observations, (n, width): their number, their deviations from the present mean and the
        squares of these, (1 + 2 width,), float64. Ranks with equal statistics may add theirs.
        """
        deviations = observations.to(torch.float64) - self.mean
        number = deviations.new_full((1,), len(deviations))
        return torch.cat([number, deviations.sum(0), deviations.square().sum(0)])

    @torch.no_grad()
    def merge(self, moments: Tensor) -> None:
        """Take moments in that this norm, or one of equal statistics, gave: the sums are exact, not averages of
        averages.
        """
        deviations, squares = moments[1:].chunk(2)
        self.count += moments[0]
        self.mean += deviations / self.count
        self.squares += squares - deviations.square() / self.count
        self.shift.copy_(self.mean)
        self.scale.copy_((self.squares / self.count).clamp_min(SMALLEST_VARIANCE).rsqrt())

    def update(self, observations: Tensor) -> None:
        """Take in observations, (n, width), that one rank saw alone."""
        self.merge(self.moments(observations))
