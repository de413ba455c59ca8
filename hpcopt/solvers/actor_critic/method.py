"""What an off-policy actor-critic method decides: how to explore, what critics aim at, what the policy minimises."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from hpcopt.config import Choice
from hpcopt.models.control.agent import Agent, Policy

Named = list[tuple[str, nn.Parameter]]


class Method(ABC):
    """Of one agent.

    Attributes:
        followed: the agent's parts that have slowly following targets.
        policy_every: updates of the critics for one of the policy and the targets.
    """

    followed: ClassVar[tuple[str, ...]] = ("critics",)
    policy_every: int = 1

    @abstractmethod
    def explore(self, policy: Policy, z_s: Tensor, noise: Tensor) -> Tensor:
        """Actions to collect by, (n, actions), from features and standard normal numbers, (n, actions)."""

    @abstractmethod
    def next_value(self, agent: Agent, targets: Mapping[str, nn.Module], z_s: Tensor, noise: Tensor) -> Tensor:
        """What an episode is worth from states with these features on, (n,), as the targets see it."""

    @abstractmethod
    def policy_loss(self, agent: Agent, z_s: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """What ``policy_parameters`` minimise, a mean over states with these features, and the policy's part of it."""

    def policy_parameters(self, agent: Agent) -> Named:
        """What the policy's loss moves."""
        return [(f"policy.{name}", p) for name, p in agent.policy.named_parameters()]

    def temperature(self, agent: Agent) -> Tensor | None:
        """The entropy's weight, (), if there is one."""
        return None


class MethodConfig(Choice, ABC):
    """An off-policy actor-critic method."""

    @abstractmethod
    def build(self, agent: Agent, actions: int) -> Method:
        """Make the method; it may set the agent's temperature."""
