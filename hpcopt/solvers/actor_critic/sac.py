"""Soft actor-critic (Haarnoja et al. 2018, arXiv:1812.05905).

    y = r + gamma (1 - end) (min_i Q'_i(s', a') - alpha log pi(a'|s')),   a' ~ pi(s')
    J_pi = E[alpha log pi(a|s) - min_i Q_i(s, a)],   J_alpha = -log alpha E[log pi(a|s) + H]

The policy is a Gaussian through a tanh: ``a = tanh(u)``, ``log pi(a) = log N(u) - sum log(1 - tanh(u)^2)``.
"""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import softplus

from hpcopt.models.control.agent import Agent, Policy
from hpcopt.solvers.actor_critic.method import Method, MethodConfig, Named

LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


class SacConfig(MethodConfig):
    """Soft actor-critic: a policy that earns much and stays as random as it may."""

    name: Literal["sac"] = "sac"
    temperature: float = Field(1.0, gt=0, description="the entropy's weight, at the start if it is learnt")
    learn_temperature: bool = Field(True, description="move it until the policy has the target entropy")
    target_entropy: float | None = Field(None, description="of an action, in nats; by default minus their number")

    def build(self, agent: Agent, actions: int) -> "Sac":
        return Sac(self, agent, actions)


class Sac(Method):
    """The method."""

    def __init__(self, config: SacConfig, agent: Agent, actions: int) -> None:
        self._learnt = config.learn_temperature
        self._target_entropy = -float(actions) if config.target_entropy is None else config.target_entropy
        with torch.no_grad():
            agent.log_temperature.fill_(math.log(config.temperature))

    def explore(self, policy: Policy, z_s: Tensor, noise: Tensor) -> Tensor:
        mean, log_std = policy(z_s)
        return torch.addcmul(mean, log_std.exp(), noise).tanh()

    def next_value(self, agent: Agent, targets: Mapping[str, nn.Module], z_s: Tensor, noise: Tensor) -> Tensor:
        mean, log_std = agent.policy(z_s)
        action, log_density = sampled(mean, log_std, noise)
        values: Tensor = targets["critics"](agent.features.act(z_s, action))
        return values.amin(0) - agent.log_temperature.exp() * log_density

    def policy_loss(self, agent: Agent, z_s: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = agent.policy(z_s)
        action, log_density = sampled(mean, log_std, noise)
        value = agent.critics(agent.features.act(z_s, action)).amin(0)
        loss = (agent.log_temperature.detach().exp() * log_density - value).mean()
        if not self._learnt:
            return loss, loss
        return loss - agent.log_temperature * (log_density.detach().mean() + self._target_entropy), loss

    def policy_parameters(self, agent: Agent) -> Named:
        own = super().policy_parameters(agent)
        return [*own, ("log_temperature", agent.log_temperature)] if self._learnt else own

    def temperature(self, agent: Agent) -> Tensor:
        return agent.log_temperature.detach().exp()


def sampled(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """An action of a Gaussian through a tanh, and the logarithm of its density.

    Args:
        mean, log_std: of the Gaussian, (n, actions).
        noise: standard normal, (n, actions).

    Returns:
        Actions, (n, actions), and log densities, (n,).

    >>> action, log_density = sampled(torch.zeros(1, 1), torch.zeros(1, 1), torch.zeros(1, 1))
    >>> float(action), round(float(log_density), 4)  # of a standard normal at 0, where the tanh has slope 1
    (0.0, -0.9189)
    """
    u = torch.addcmul(mean, log_std.exp(), noise)
    log_cosh = torch.sub(u, softplus(u, beta=-2), alpha=2)  # and log 2: softplus(u, -2) is -log(1 + exp(-2 u)) / 2
    of_normal = torch.addcmul(log_std, noise, noise, value=0.5)  # minus its log density, but for a constant
    constant = noise.shape[-1] * (LOG_SQRT_2PI + 2 * math.log(2))
    return u.tanh(), -constant - torch.sub(of_normal, log_cosh, alpha=2).sum(-1)  # log(1 - tanh^2) is -2 log cosh
