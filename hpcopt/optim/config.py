"""What every optimizer's section of a job has."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from hpcopt.config import Choice
from hpcopt.errors import UnsupportedError

Outcome = Callable[
    [nn.Parameter], Tensor
]  # a parameter's packed signs, shape (ceil(n / 64),), int64; a set bit is minus


class OptimizerConfig(Choice, ABC):
    """A serial optimizer: from a gradient to a step. It knows nothing of ranks."""

    takes: ClassVar[frozenset[str]] = frozenset({"sums"})  # what an exchange may give, for it to step by
    asks: ClassVar[frozenset[str]] = frozenset({"gradient"})  # "product", "variance": see derivatives.Asking

    lr: float = Field(gt=0, description="learning rate at the top of the schedule")

    @property
    def draws(self) -> bool:
        """Whether steps draw at random."""
        return False

    @property
    def has_modes(self) -> bool:
        """Whether parameters are evaluated elsewhere than they are trained (``hpcopt.optim.modes``)."""
        return False

    @abstractmethod
    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Make the optimizer of these parameters."""

    def build_on_signs(
        self, parameters: Iterable[nn.Parameter], signs: Callable[[float], Outcome]
    ) -> torch.optim.Optimizer:
        """Make the optimizer where its gradients' signs are decided elsewhere, if it ``takes`` signs.

        Args:
            signs: of a momentum that stands before the decision, gives what says a parameter's signs.
        """
        raise UnsupportedError(f"optimizer {self.name!r} does not step by signs").everywhere()
