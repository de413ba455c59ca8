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
        step: gives the step.
        calls: in this step so far.
    """

    seed: int
    rank: int
    step: Callable[[], int]
    calls: int = 0

    def next(self) -> torch.Generator:
        """The generator of the next call in this step."""
        name = f"sampled targets, call {self.calls}"
        self.calls += 1
        return torch.Generator().manual_seed(derive(self.seed, self.step(), self.rank, name))


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
