"""Targets drawn from the model's own predictive distribution, for the true Fisher."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hpcopt.pinned import sent
from hpcopt.seeds import derive

Distribution = Literal["categorical", "bernoulli", "gaussian"]


@dataclass
class Draws:
    """Generators of the draws: others for each step, rank and call, so that micro-batches do not draw alike.

    Attributes:
        seed: of them all.
        rank: this one, or the virtual rank that computes.
        step: gives the step.
    """

    seed: int
    rank: int
    step: Callable[[], int]
    _last: tuple[int, int, int] = (-1, 0, 0)  # step, rank and call of the last one

    def next(self) -> torch.Generator:
        """The generator of the next call in this step."""
        step, rank, call = self.step(), self.rank, 0
        if self._last[:2] == (step, rank):
            call = self._last[2] + 1
        self._last = step, rank, call
        return torch.Generator().manual_seed(derive(self.seed, step, rank, f"sampled targets, call {call}"))


def sampled_gradient(outputs: Tensor, distribution: Distribution, generator: torch.Generator) -> Tensor:
    """Gradient of a sampled target's negative log-likelihood by the outputs: logits, or means of unit variance.

    What is drawn depends on the generator alone, not on the outputs' device.
    """
    wide = outputs.to(torch.promote_types(outputs.dtype, torch.float32))

    def drawn(draw: Callable[..., Tensor], *shape: int) -> Tensor:
        return sent(draw(shape, dtype=wide.dtype, generator=generator, device=generator.device), wide.device)

    if distribution == "categorical":
        p = wide.softmax(-1)
        up_to = p.cumsum(-1)
        at = drawn(torch.rand, *p.shape[:-1], 1) * up_to[..., -1:]
        target = torch.searchsorted(up_to, at, right=True).clamp_(max=p.shape[-1] - 1)
        gradient = p.scatter_add(-1, target, -torch.ones_like(at))
    elif distribution == "bernoulli":
        p = wide.sigmoid()
        gradient = p - (drawn(torch.rand, *p.shape) < p).to(p.dtype)
    else:
        gradient = drawn(torch.randn, *wide.shape)
    return gradient.to(outputs.dtype)
