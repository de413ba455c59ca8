"""Optimizers of different parameters that step as one."""

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch.optim import Optimizer


class Several(Optimizer):
    """Optimizers, each with parameters of its own. Their groups and their state are this one's, so that whoever sets a
    rate, saves, restores or looks at a state need not know that there are several.

    Attributes:
        parts: the optimizers, in the order of the groups.

    >>> x, y = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))
    >>> both = Several([torch.optim.Muon([x], lr=0.1), torch.optim.SGD([y], lr=0.1)])
    >>> [len(group["params"]) for group in both.param_groups]
    [1, 1]
    """

    def __init__(self, parts: Iterable[Optimizer]) -> None:
        """Raises ValueError: two of them have a parameter in common."""
        self.parts = [inner for part in parts for inner in parts_of(part)]
        super().__init__([p for part in self.parts for group in part.param_groups for p in group["params"]], {})
        for part in self.parts:
            self.state.update(part.state)
        self._share([group for part in self.parts for group in part.param_groups])

    def _share(self, groups: list[dict[str, Any]]) -> None:
        """Let the parts have these groups, each its own, and all of them one state."""
        self.param_groups, rest = groups, list(groups)
        for part in self.parts:
            count = len(part.param_groups)
            part.__setstate__({"state": self.state, "param_groups": rest[:count]})
            del rest[:count]

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over what ``load_state_dict`` has read."""
        super().__setstate__(state)
        self._share(self.param_groups)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Let each move its parameters once; give the closure's loss, if there is a closure."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def train(self) -> None:
        """Let those that tell training from evaluation train."""
        for part in self.parts:
            if has_modes(part):
                part.train()  # type: ignore[attr-defined]

    def eval(self) -> None:
        """Let those that tell training from evaluation be evaluated."""
        for part in self.parts:
            if has_modes(part):
                part.eval()  # type: ignore[attr-defined]


def parts_of(optimizer: Optimizer) -> list[Optimizer]:
    """The optimizers that step as one, or the only one."""
    return optimizer.parts if isinstance(optimizer, Several) else [optimizer]


def name_of(optimizer: Optimizer) -> str:
    """The names of the classes, for records and messages."""
    return " + ".join(type(part).__name__ for part in parts_of(optimizer))


def has_modes(optimizer: Optimizer) -> bool:
    """Whether it is to be evaluated at other parameters than those that it trains, as Schedule-Free is: such an
    optimizer has ``train()`` and ``eval()``, which move the parameters from one to the other.
    """
    return any(
        callable(getattr(part, "train", None)) and callable(getattr(part, "eval", None)) for part in parts_of(optimizer)
    )
