"""LAMB: Adam's direction, scaled layer by layer (You et al. 2019, arXiv:1904.00962, algorithm 2)."""

from collections.abc import Iterable
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from hpcopt.optim.config import OptimizerConfig
from hpcopt.optim.groups import decay_matrices_only
from hpcopt.optim.rule import CountedRule, gradient


class LambConfig(OptimizerConfig):
    """LAMB: AdamW whose step on each matrix has a length in proportion to the matrix's own."""

    name: Literal["lamb"] = "lamb"
    lr: float = Field(1e-3, gt=0, description="learning rate at the top of the schedule")
    betas: tuple[float, float] = Field((0.9, 0.999), description="decay of the first and the second moment")
    eps: float = Field(1e-6, gt=0, description="added to the square root of the second moment")
    weight_decay: float = Field(0.01, ge=0, description="decay of weights of two or more dimensions")

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Make the optimizer of these parameters."""
        groups = decay_matrices_only(parameters, self.weight_decay)
        return Lamb(groups, lr=self.lr, betas=self.betas, eps=self.eps)


class Lamb(CountedRule):
    """With m and v the bias-corrected moments of the gradient, for each parameter x::

        u = m / (sqrt(v) + eps) + weight_decay * x
        x <- x - lr * (|x| / |u|) * u

    The ratio is 1 where either norm is 0, and for vectors (biases, norm scales), as in the published recipe for BERT.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def move_at(self, group: dict[str, Any], step: int, parameters: list[Tensor]) -> None:
        for p in parameters:
            self._move(group, step, p)

    def _move(self, group: dict[str, Any], step: int, p: Tensor) -> None:
        g, (m,), (v,) = gradient(p), self.states("m", [p]), self.states("v", [p])
        beta1, beta2 = group["betas"]
        m.lerp_(g, 1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        root = (v / (1 - beta2**step)).sqrt_().add_(group["eps"])
        update = (m / root).div_(1 - beta1**step).add_(p, alpha=group["weight_decay"])
        if p.dim() < 2:
            p.add_(update, alpha=-group["lr"])
        elif p.is_cpu:
            p.add_(update, alpha=-group["lr"] * _ratio(p, update))
        else:
            p.sub_(update.mul_(group["lr"] * _unread_ratio(p, update)))


def _ratio(p: Tensor, update: Tensor) -> float:
    weight_norm, update_norm = float(p.norm()), float(update.norm())
    return weight_norm / update_norm if weight_norm > 0 and update_norm > 0 else 1.0


def _unread_ratio(p: Tensor, update: Tensor) -> Tensor:
    """As ``_ratio``, for a GPU, which would have to be waited for to read it."""
    weight_norm, update_norm = p.norm(), update.norm()
    return torch.where((weight_norm > 0) & (update_norm > 0), weight_norm / update_norm, 1.0)
