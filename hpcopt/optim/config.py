"""What every optimizer's section of a job has."""

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from pydantic import Field
from torch import nn

from hpcopt.config import Choice


class OptimizerConfig(Choice, ABC):
    """A serial optimizer: from a gradient to a step. It knows nothing of ranks."""

    lr: float = Field(gt=0, description="learning rate at the top of the schedule")

    @abstractmethod
    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Make the optimizer of these parameters."""
