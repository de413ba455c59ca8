"""Twin delayed deep deterministic policy gradient (Fujimoto et al. 2018, arXiv:1802.09477).

y = r + gamma (1 - end) min_i Q'_i(s', clip(pi'(s') + clip(sigma e, -c, c), -1, 1))
J_pi = -E[Q_1(s, pi(s))],   once in ``policy_every`` updates
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from hpcopt.models.control.agent import Agent, Policy
from hpcopt.solvers.actor_critic.method import Method, MethodConfig


class Td3Config(MethodConfig):
    """TD3: a deterministic policy, which explores by noise."""

    name: Literal["td3"] = "td3"
    exploration: float = Field(0.1, ge=0, description="standard deviation of what is added to actions that are taken")
    smoothing: float = Field(0.2, ge=0, description="standard deviation of what is added to the targets' actions")
    smoothing_clip: float = Field(0.5, ge=0, description="the most that is added to the targets' actions")
    policy_every: int = Field(2, ge=1, description="updates of the critics for one of the policy and the targets")

    def build(self, agent: Agent, actions: int) -> "Td3":
        return Td3(self)


class Td3(Method):
    """The method."""

    followed: ClassVar[tuple[str, ...]] = ("critics", "policy")

    def __init__(self, config: Td3Config) -> None:
        self._config, self.policy_every = config, config.policy_every

    def explore(self, policy: Policy, z_s: Tensor, noise: Tensor) -> Tensor:
        mean: Tensor = policy(z_s)[0]
        return (mean.tanh() + self._config.exploration * noise).clamp(-1, 1)

    def next_value(self, agent: Agent, targets: Mapping[str, nn.Module], z_s: Tensor, noise: Tensor) -> Tensor:
        clip = self._config.smoothing_clip
        mean: Tensor = targets["policy"](z_s)[0]
        action = (mean.tanh() + (self._config.smoothing * noise).clamp(-clip, clip)).clamp(-1, 1)
        values: Tensor = targets["critics"](agent.features.act(z_s, action))
        return values.amin(0)

    def policy_loss(self, agent: Agent, z_s: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        mean: Tensor = agent.policy(z_s)[0]
        loss = -agent.critics(agent.features.act(z_s, mean.tanh()))[0].mean()
        return loss, loss
