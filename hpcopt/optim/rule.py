"""What our own optimizers share: the frame of a step, lazily made states, and what they refuse."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, overload

import torch
from torch import Tensor

from hpcopt.errors import UnsupportedError


class Rule(torch.optim.Optimizer, ABC):
    """A torch optimizer that says how the parameters of a group move, and nothing else."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Take parameters in; the constructor does it for those of the start.

        Raises:
            UnsupportedError: one of them is complex.
        """
        super().add_param_group(param_group)
        if any(p.is_complex() for p in self.param_groups[-1]["params"]):
            name = type(self).__name__
            raise UnsupportedError(f"{name} does not move complex parameters: use torch's SGD").everywhere()

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Move all parameters once; give the closure's loss, if there is a closure.

        Raises:
            UnsupportedError: a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.prepare()
        for group in self.param_groups:
            self.move(group, self.movable(group))
        return loss

    def prepare(self) -> None:
        """Get ready for a step, before any parameter moves."""
        return

    @abstractmethod
    def move(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        """Move these parameters of one group."""

    def movable(self, group: dict[str, Any]) -> list[Tensor]:
        """The parameters of a group that have a gradient."""
        parameters: list[Tensor] = [p for p in group["params"] if p.grad is not None]
        for p in parameters:
            if gradient(p).is_sparse:
                raise UnsupportedError(f"{type(self).__name__} does not move by sparse gradients: use torch's SGD")
        return parameters

    def states(self, name: str, parameters: Sequence[Tensor]) -> list[Tensor]:
        """A state of each parameter, of its shape; 0 when asked for first."""
        for p in parameters:
            if name not in self.state[p]:
                self.state[p][name] = torch.zeros_like(p)
        return [self.state[p][name] for p in parameters]


class CountedRule(Rule):
    """A rule that goes by the number of a parameter's steps. State by parameter: ``step``."""

    def move(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        """Count this step; the parameters go together by the number of their steps, one for nearly all networks."""
        found: dict[int, list[Tensor]] = {}
        for p in parameters:
            step = self.state[p]["step"] = int(self.state[p].get("step", 0)) + 1
            found.setdefault(step, []).append(p)
        for step, same in found.items():
            self.move_at(group, step, same)

    @abstractmethod
    def move_at(self, group: dict[str, Any], step: int, parameters: list[Tensor]) -> None:
        """Move these parameters of one group by their step-th step, the first being 1."""


def gradient(p: Tensor) -> Tensor:
    """The gradient of a parameter that has one."""
    assert p.grad is not None
    return p.grad


def gradients(parameters: list[Tensor], l2: float = 0.0) -> list[Tensor]:
    """The gradients of parameters that have one, of the loss and ``l2 / 2 |x|^2``; not to be written into."""
    found = [gradient(p) for p in parameters]
    return list(torch._foreach_add(found, parameters, alpha=l2)) if l2 else found
