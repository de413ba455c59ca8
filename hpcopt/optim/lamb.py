"""LAMB: Adam's direction, scaled layer by layer (You et al. 2019, arXiv:1904.00962, algorithm 2)."""

from collections.abc import Callable, Iterable
from typing import Any, Literal, overload

import torch
from pydantic import Field
from torch import Tensor, nn

from hpcopt.optim.config import OptimizerConfig
from hpcopt.optim.groups import decay_matrices_only


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


class Lamb(torch.optim.Optimizer):
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

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Move all parameters once; give the closure's loss, if there is a closure."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._move(p, group)
        return loss

    def _move(self, p: nn.Parameter, group: dict[str, Any]) -> None:
        state, gradient, (beta1, beta2) = self.state[p], p.grad, group["betas"]
        assert gradient is not None
        if not state:
            state["step"] = 0
            state["m"], state["v"] = torch.zeros_like(p), torch.zeros_like(p)
        state["step"] += 1
        state["m"].lerp_(gradient, 1 - beta1)
        state["v"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        root = (state["v"] / (1 - beta2 ** state["step"])).sqrt_().add_(group["eps"])
        update = (state["m"] / root).div_(1 - beta1 ** state["step"]).add_(p, alpha=group["weight_decay"])
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
