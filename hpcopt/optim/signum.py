"""Signum: steps of one size, in the direction of the sign of the momentum (Bernstein et al. 2018, arXiv:1802.04434).

``m <- momentum m + (1 - momentum) g``; ``x <- x - lr (sign(m) + weight_decay x)``. Zero counts as plus, as in a vote.

Signs may also come packed, one bit a value, as a vote leaves them: then the step is one sweep of memory, and no vector
of +1 and -1 is made. It is the same step, bit for bit.
"""

from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from hpcopt import kernels
from hpcopt.kernels import cuda
from hpcopt.kernels.cut import Cut
from hpcopt.optim.config import OptimizerConfig, Outcome
from hpcopt.optim.groups import decay_matrices_only
from hpcopt.optim.rule import Rule, gradient


class SignumConfig(OptimizerConfig):
    """Sign of the momentum. Behind ``[exchange] name = "vote"`` the momentum is each rank's own, before the vote."""

    takes: ClassVar[frozenset[str]] = frozenset({"sums", "signs"})

    name: Literal["signum"] = "signum"
    lr: float = Field(1e-3, gt=0, description="learning rate at the top of the schedule: the size of every step")
    momentum: float = Field(0.9, ge=0, lt=1, description="decay of the running mean of gradients")
    weight_decay: float = Field(0.0, ge=0, description="decoupled decay of weights of two or more dimensions")

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Make the optimizer of these parameters."""
        return Signum(decay_matrices_only(parameters, self.weight_decay), self.lr, self.momentum)

    def build_on_signs(
        self, parameters: Iterable[nn.Parameter], signs: Callable[[float], Outcome]
    ) -> torch.optim.Optimizer:
        """The momentum is each rank's own and stands before the vote, so it moves from here to there."""
        groups = decay_matrices_only(parameters, self.weight_decay)
        return Signum(groups, self.lr, momentum=0.0, outcome=signs(self.momentum))


class Signum(Rule):
    """The optimizer. State by parameter: ``momentum``, of its shape, unless momentum is 0."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        *,
        outcome: Outcome | None = None,
    ) -> None:
        """Args as in the paper.

        Args:
            outcome: gives the signs that a parameter moves by, in place of its gradient and momentum; the parameters
                are then float32.
        """
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self._outcome = outcome

    def movable(self, group: dict[str, Any]) -> list[Tensor]:
        """Where signs come from elsewhere, no parameter needs a gradient."""
        if self._outcome is None:
            return super().movable(group)
        return [p for p in group["params"] if p.requires_grad]

    def move(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        beta, lr, decay = group["momentum"], group["lr"], group["weight_decay"]
        for p in parameters:
            if self._outcome is not None:
                _move(p, self._outcome(cast(nn.Parameter, p)), lr, decay)
                continue
            direction = gradient(p)
            if beta:
                (momentum,) = self.states("momentum", [p])
                direction = momentum.mul_(beta).add_(direction, alpha=1 - beta)
            p.mul_(1 - lr * decay)
            p.sub_(torch.where(direction < 0, -lr, lr))


def _move(p: Tensor, words: Tensor, lr: float, decay: float) -> None:
    """``p <- (1 - lr decay) p -+ lr``, straight from the words."""
    values = p.detach().contiguous()
    if p.is_cpu:
        signs = words.numpy().view(np.uint64)
        kernels.bits.step(signs, np.float32(lr), np.float32(1 - lr * decay), values.view(-1).numpy())
    else:
        values.mul_(1 - lr * decay)
        cut, slots = Cut.rows(1, p.numel()), words.to(p.device).view(1, -1).view(torch.uint8)
        cuda.bits.unpack(slots, cut, -lr, True, values.view(-1))
    if values.data_ptr() != p.data_ptr():
        p.copy_(values)
