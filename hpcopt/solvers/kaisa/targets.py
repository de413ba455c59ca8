"""Targets drawn from the model's own predictive distribution, for the true Fisher."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hpcopt.seeds import derive

Distribution = Literal["categorical", "bernoulli", "gaussian"]


@dataclass
class Draws:
    """Generators of the draws: others for each step, rank and call, so that micro-batches do not draw alike.

    Attributes:
        seed: of them all.
        step: gives the step.
        calls: in this step so far.
    """

    seed: int
    rank: int
    step: Callable[[], int]
    calls: int = 0

    def next(self, device: torch.device) -> torch.Generator:
        """The generator of the next call in this step."""
        name = f"sampled targets, call {self.calls}"
        self.calls += 1
        return torch.Generator(device).manual_seed(derive(self.seed, self.step(), self.rank, name))


def sampled_gradient(outputs: Tensor, distribution: Distribution, generator: torch.Generator) -> Tensor:
    """Gradient of a sampled target's negative log-likelihood by the outputs: logits, or means of unit variance."""
    if distribution == "categorical":
        p = outputs.softmax(-1)
        drawn = torch.multinomial(p.flatten(0, -2), 1, generator=generator).view(*p.shape[:-1], 1)
        return p.scatter_add(-1, drawn, -torch.ones_like(drawn, dtype=p.dtype))
    if distribution == "bernoulli":
        p = outputs.sigmoid()
        return p - torch.bernoulli(p, generator=generator)
    return torch.randn(outputs.shape, dtype=outputs.dtype, device=outputs.device, generator=generator)
