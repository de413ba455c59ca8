"""What stands between observations and the networks of reinforcement learning.

The losses of actor and critics never change features, by construction: their gradients pass through to the inputs, the
actions above all, and stop at the weights. Features that learn have a loss of their own.
"""

from abc import ABC, abstractmethod
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from hpcopt.config import Choice
from hpcopt.models.control.running_norm import RunningNorm


class Features(nn.Module, ABC):
    """Features of observations, and of observations with actions.

    Attributes:
        widths: of what ``observe`` gives, and of what ``act`` gives.
        norm: scales observations before anything else, or None. Who collects observations tells it of them.
    """

    widths: tuple[int, int]
    norm: RunningNorm | None

    def __init__(self, observations: int, normalise: bool) -> None:
        super().__init__()
        self.norm = RunningNorm(observations) if normalise else None

    def scaled(self, s: Tensor) -> Tensor:
        """Observations as the features take them, (n, observations)."""
        return s if self.norm is None else self.norm(s)

    @abstractmethod
    def observe(self, s: Tensor) -> Tensor:
        """Features z_s, (n, widths[0]), of observations, (n, observations)."""

    @abstractmethod
    def act(self, z_s: Tensor, a: Tensor) -> Tensor:
        """Features z_sa, (n, widths[1]), of z_s and actions, (n, actions)."""

    def loss(self, s: Tensor, a: Tensor, next_s: Tensor) -> Tensor | None:
        """What the features themselves minimise on transitions, a scalar; None: they do not learn."""
        return None


class FeatureConfig(Choice, ABC):
    """Features of observations and actions."""

    normalise: bool = Field(False, description="scale observations by the mean and variance of all collected so far")

    @abstractmethod
    def build(self, observations: int, actions: int) -> Features:
        """Make them for vectors of so many numbers."""


class NoFeaturesConfig(FeatureConfig):
    """Observations and actions themselves."""

    name: Literal["none"] = "none"

    def build(self, observations: int, actions: int) -> "NoFeatures":
        return NoFeatures(observations, actions, self.normalise)


class NoFeatures(Features):
    """z_s = s and z_sa = [s, a]."""

    def __init__(self, observations: int, actions: int, normalise: bool = False) -> None:
        super().__init__(observations, normalise)
        self.widths = observations, observations + actions

    def observe(self, s: Tensor) -> Tensor:
        return self.scaled(s)

    def act(self, z_s: Tensor, a: Tensor) -> Tensor:
        return torch.cat([z_s, a], -1)
