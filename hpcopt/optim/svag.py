"""Variance-adapted gradients, SVAG and M-SVAG (Balles and Hennig 2018, arXiv:1705.07774).

With m and v the bias-corrected means of g and g^2, both of decay beta, and t the step::

    rho   = (1 - beta) (1 + beta^t) / ((1 + beta) (1 - beta^t))       the variance that is left in m, of g's
    s     = (v - m^2) / (1 - rho)                                     g's variance, unbiased
    SVAG    x <- x - lr m^2 / (m^2 + s) g
    M-SVAG  x <- x - lr m^2 / (m^2 + rho s) m

The factor is the one that brings a step nearest to the true gradient, in the mean square. The paper's other two, the
signs of g and of m (SSD, M-SSD), are ``signum`` with momentum 0 and beta.
"""

from collections.abc import Iterable
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from hpcopt.optim.config import OptimizerConfig
from hpcopt.optim.groups import decay_matrices_only
from hpcopt.optim.rule import CountedRule, gradients


class _VarianceAdapted(OptimizerConfig):
    lr: float = Field(0.1, gt=0, description="learning rate at the top of the schedule")
    beta: float = Field(0.9, ge=0, lt=1, description="decay of the means of gradients and of their squares")
    weight_decay: float = Field(0.0, ge=0, description="L2 penalty on weights of two or more dimensions")

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Make the optimizer of these parameters."""
        groups = decay_matrices_only(parameters, self.weight_decay)
        return Svag(groups, lr=self.lr, beta=self.beta, momentum=self.name == "m_svag")


class SvagConfig(_VarianceAdapted):
    """Gradients, each value shortened by how noisy it is."""

    name: Literal["svag"] = "svag"


class MSvagConfig(_VarianceAdapted):
    """Momentum, each value shortened by how noisy it is."""

    name: Literal["m_svag"] = "m_svag"


class Svag(CountedRule):
    """The optimizer. State by parameter: ``step``, and of its shape ``m`` and ``v``."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.1,
        beta: float = 0.9,
        weight_decay: float = 0.0,
        *,
        momentum: bool = True,
    ) -> None:
        """Args as in ``MSvagConfig``.

        Args:
            momentum: move by the mean of gradients (M-SVAG); if not, by the gradient (SVAG).
        """
        super().__init__(params, {"lr": lr, "beta": beta, "weight_decay": weight_decay, "momentum": momentum})

    def move_at(self, group: dict[str, Any], step: int, parameters: list[Tensor]) -> None:
        beta, lr = group["beta"], group["lr"]
        g = gradients(parameters, group["weight_decay"])
        m, v = self.states("m", parameters), self.states("v", parameters)
        torch._foreach_lerp_(m, g, 1 - beta)
        torch._foreach_mul_(v, beta)
        torch._foreach_addcmul_(v, g, g, value=1 - beta)
        moved, size = (m, lr / (1 - beta**step)) if group["momentum"] else (g, lr)
        times, over = self._shortened(step, beta, parameters, averaged=group["momentum"])
        torch._foreach_addcdiv_(parameters, moved, over, value=-size * times)

    def factors(self, step: int, beta: float, parameters: list[Tensor], *, averaged: bool) -> list[Tensor]:
        """What shortens each value, in [0, 1] but for rounding; 0 where no gradient was ever given."""
        times, over = self._shortened(step, beta, parameters, averaged=averaged)
        return list(torch._foreach_mul(torch._foreach_reciprocal(over), times))

    def _shortened(
        self, step: int, beta: float, parameters: list[Tensor], *, averaged: bool
    ) -> tuple[float, list[Tensor]]:
        """The factors, as a number and what it is to be divided by, which is infinite where m is 0.

        The bias corrections stand in the number: with c the ratio of the variance that counts to ``v - m^2``, and m and
        v as they are kept, a factor is ``m^2 / ((1 - c) m^2 + c (1 - beta^t) v)``. Neither m^2 nor m^3 is made of an m:
        of a small one they would be too small for a float's full precision, and slow.
        """
        m, v = self.states("m", parameters), self.states("v", parameters)
        rho = min((1 - beta) * (1 + beta**step) / ((1 + beta) * (1 - beta**step)), 0.9999)
        c = (rho if averaged else 1.0) / (1 - rho)
        times = c * (1 - beta**step)
        over = torch._foreach_clamp_min(v, torch.finfo(m[0].dtype).tiny)
        torch._foreach_div_(over, m)
        torch._foreach_div_(over, m)
        torch._foreach_add_(over, (1 - c) / times)
        return 1 / times, list(over)
