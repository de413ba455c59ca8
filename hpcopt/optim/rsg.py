"""Remote stochastic gradients, plain and adaptive (Chen et al. 2019, arXiv:1905.01422).

The gradient is taken ahead of where the iterate truly is. Written in the place where it is taken, with m the running
mean of gradients and mu the observation factor, the step is::

    m <- beta m + (1 - beta) g
    x <- x - lr ((1 - mu) m + mu g)                      RSG
    x <- x - lr ((1 - mu) m + mu g) / sqrt(v_max)        ARSG, v as in AMSGrad, with v_max >= eps from the start

mu = 0 is momentum, mu = 1 - beta is Nesterov's. ``hpcopt.optim.stability`` says which of them are stable.
"""

from collections.abc import Iterable
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from hpcopt.optim.config import OptimizerConfig
from hpcopt.optim.groups import decay_matrices_only
from hpcopt.optim.rule import CountedRule, Rule, gradients

EPS = {"fast": 1e-8, "fine": 1e-3}


class RsgConfig(OptimizerConfig):
    """Momentum whose gradients are taken at a remote point (RSG)."""

    name: Literal["rsg"] = "rsg"
    lr: float = Field(0.1, gt=0, description="learning rate at the top of the schedule")
    momentum: float = Field(0.999, ge=0, lt=1, description="decay of the running mean of gradients")
    observation: float = Field(0.1, ge=0, lt=1, description="share of the newest gradient in a step, beside the mean")
    weight_decay: float = Field(0.0, ge=0, description="L2 penalty on weights of two or more dimensions")

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Make the optimizer of these parameters."""
        groups = decay_matrices_only(parameters, self.weight_decay)
        return Rsg(groups, lr=self.lr, momentum=self.momentum, observation=self.observation)


class Rsg(Rule):
    """The optimizer. State by parameter: ``m``, of its shape.

    >>> x = torch.nn.Parameter(torch.ones(1))
    >>> optimizer = Rsg([x], lr=0.1, momentum=0.5, observation=0.2)
    >>> x.grad = torch.ones(1)
    >>> optimizer.step()  # by .1 (.8 x .5 + .2 x 1)
    >>> round(float(x), 6)
    0.94
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.1,
        momentum: float = 0.999,
        observation: float = 0.1,
        weight_decay: float = 0.0,
    ) -> None:
        """Args: as in ``RsgConfig``."""
        super().__init__(
            params, {"lr": lr, "momentum": momentum, "observation": observation, "weight_decay": weight_decay}
        )

    def move(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        if not parameters:
            return
        lr, mu = group["lr"], group["observation"]
        g, m = gradients(parameters, group["weight_decay"]), self.states("m", parameters)
        torch._foreach_lerp_(m, g, 1 - group["momentum"])
        torch._foreach_add_(parameters, m, alpha=-lr * (1 - mu))
        if mu:
            torch._foreach_add_(parameters, g, alpha=-lr * mu)


class ArsgConfig(OptimizerConfig):
    """RSG with a rate for every parameter, as in AMSGrad (ARSG)."""

    name: Literal["arsg"] = "arsg"
    lr: float = Field(1e-3, gt=0, description="learning rate at the top of the schedule")
    betas: tuple[float, float] = Field((0.999, 0.99), description="decay of the first and the second moment")
    observation: float = Field(0.1, ge=0, lt=1, description="share of the newest gradient in a step, beside the mean")
    mode: Literal["fast", "fine"] = Field("fast", description="eps 1e-8, or 1e-3, which generalises better")
    amsgrad: bool = Field(True, description="divide by the largest second moment so far; if not, as Adam does")
    restart_every: int | None = Field(None, ge=1, description="steps after which that largest is forgotten")
    weight_decay: float = Field(0.0, ge=0, description="L2 penalty on weights of two or more dimensions")

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Make the optimizer of these parameters."""
        return Arsg(
            decay_matrices_only(parameters, self.weight_decay),
            lr=self.lr,
            betas=self.betas,
            observation=self.observation,
            eps=EPS[self.mode],
            amsgrad=self.amsgrad,
            restart_every=self.restart_every,
        )


class Arsg(CountedRule):
    """The optimizer. State by parameter: ``step``, and of its shape ``m``, ``v`` and, with amsgrad, ``v_max``."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.999, 0.99),
        observation: float = 0.1,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        amsgrad: bool = True,
        restart_every: int | None = None,
    ) -> None:
        """Args as in ``ArsgConfig``.

        Args:
            eps: the least second moment, itself and not its root; without amsgrad added to the root, as in Adam.
        """
        defaults = {"lr": lr, "betas": betas, "observation": observation, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "amsgrad": amsgrad, "restart_every": restart_every})

    def restart(self) -> None:
        """Forget the largest second moments: go on from the present ones."""
        for group in self.param_groups:
            self._restart(group, [p for p in group["params"] if "v_max" in self.state[p]])

    def _restart(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        for p in parameters:
            self.state[p]["v_max"].copy_(self.state[p]["v"]).clamp_(min=group["eps"])

    def move_at(self, group: dict[str, Any], step: int, parameters: list[Tensor]) -> None:
        lr, (beta1, beta2), mu, eps = group["lr"], group["betas"], group["observation"], group["eps"]
        g = gradients(parameters, group["weight_decay"])
        m, v = self.states("m", parameters), self.states("v", parameters)
        torch._foreach_lerp_(m, g, 1 - beta1)
        torch._foreach_mul_(v, beta2)
        torch._foreach_addcmul_(v, g, g, value=1 - beta2)
        if group["amsgrad"]:
            largest = self.states("v_max", parameters)
            if step == 1:
                torch._foreach_add_(largest, eps)
            torch._foreach_maximum_(largest, v)
            root, mean_share = torch._foreach_sqrt(largest), 1 - mu
        else:
            root, mean_share = torch._foreach_sqrt(v), (1 - mu) / (1 - beta1**step)
            torch._foreach_mul_(root, (1 - beta2**step) ** -0.5)
            torch._foreach_add_(root, eps)
        torch._foreach_addcdiv_(parameters, m, root, value=-lr * mean_share)
        if mu:
            torch._foreach_addcdiv_(parameters, g, root, value=-lr * mu)
        if group["amsgrad"] and group["restart_every"] and step % group["restart_every"] == 0:
            self._restart(group, parameters)
