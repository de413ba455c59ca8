"""A policy and twin critics on common features: what methods like SAC and TD3 train."""

import torch
from torch import Tensor, nn

from hpcopt.models.control.body import BodyConfig
from hpcopt.models.control.features import FeatureConfig, Features
from hpcopt.models.control.stacked import StackedLinear

TWINS = 2
LOG_STD = (-20.0, 2.0)  # bounds of a Gaussian's log standard deviation


class Policy(nn.Module):
    """From features of observations to actions before their tanh."""

    def __init__(self, inputs: int, actions: int, body: BodyConfig) -> None:
        super().__init__()
        self.body = body.build(inputs)
        self.head = nn.Linear(self.body.width, 2 * actions)

    def forward(self, z_s: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of a Gaussian, (n, actions) each."""
        mean, log_std = self.head(self.body(z_s)).chunk(2, -1)
        return mean, log_std.clamp(*LOG_STD)


class Critics(nn.Module):
    """Two networks in stacked tensors, from features of observations and actions to their values."""

    def __init__(self, inputs: int, body: BodyConfig) -> None:
        super().__init__()
        self.body = body.build(inputs, TWINS)
        self.head = StackedLinear(TWINS, self.body.width, 1)

    def forward(self, z_sa: Tensor) -> Tensor:
        """The value that each of the two expects, (2, n)."""
        values: Tensor = self.head(self.body(z_sa))
        return values.squeeze(-1)


class Agent(nn.Module):
    """The networks. Actions are numbers in [-1, 1]; whoever acts stretches them to what an environment takes.

    Attributes:
        features: of observations and actions.
        policy, critics: on them.
        log_temperature: of the entropy's weight, (), where a method has one.
    """

    features: Features

    def __init__(
        self, observations: int, actions: int, features: FeatureConfig, actor: BodyConfig, critic: BodyConfig
    ) -> None:
        """Raise ValueError if a network does not suit vectors of so many numbers."""
        super().__init__()
        self.features = features.build(observations, actions)
        seen, acted = self.features.widths
        self.policy = Policy(seen, actions, actor)
        self.critics = Critics(acted, critic)
        self.log_temperature = nn.Parameter(torch.zeros(()))

    def forward(self, observations: Tensor) -> Tensor:
        """What the policy does when it does not explore: (n, observations) to (n, actions)."""
        mean: Tensor = self.policy(self.features.observe(observations))[0]
        return mean.tanh()
