"""A learner: updates of an agent from a replay.

In one update the critics step to ``y = r + gamma (1 - end) V(s')``, then the policy steps, then targets follow:
``target <- target + tau (parameter - target)``. Features that learn step first, by their own loss and optimizer; actor
and critics see them as they are then, and move nothing in them.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hpcopt.comm.world import World
from hpcopt.errors import fitting
from hpcopt.models.control.agent import Agent
from hpcopt.models.control.unit_statistics import unit_statistics
from hpcopt.shapes.context import Context
from hpcopt.shapes.simulation import Layout, Transitions
from hpcopt.shapes.solver import Tree
from hpcopt.solvers.actor_critic.descent import Descent
from hpcopt.solvers.actor_critic.method import Method
from hpcopt.solvers.actor_critic.replay import Drawn, ReplayConfig
from hpcopt.solvers.actor_critic.settings import Learning


class Learnt(NamedTuple):
    """What updates were like, those of one step; losses are this learner's summands.

    Attributes:
        critic_loss, policy_loss: of the last update, float32; without an update of the policy, NaN.
        temperature: after it, NaN if there is none.
        age: of the last draw, in steps of environments of this learner's.
        units: effective ranks and shares of dormant units of policy and critics, on the last draw; empty unless due.
    """

    critic_loss: float
    policy_loss: float
    temperature: float
    age: float
    units: dict[str, float]


class Learner:
    """One of several, each with its own replay; their agents are the same bits.

    Attributes:
        replay: its transitions.
        updates: so far.
        prepared: whether features have learned alone, if they do.
        targets: slow copies of the agent's parts.
    """

    def __init__(
        self,
        agent: Agent,
        config: Learning,
        replay: ReplayConfig,
        method: Method,
        layout: Layout,
        context: Context,
        learners: World,
    ) -> None:
        """Collective: over the learners."""
        self._agent, self._config, self._method, self._layout = agent, config, method, layout
        self._device, self._world, self._clock = context.device, learners, context.clock
        self.replay, self.updates, self.prepared = replay.build(layout.width, learners.size), 0, False
        self._share = len(np.array_split(np.arange(config.batch_size), learners.size)[learners.rank])
        self._part = self._share / config.batch_size
        self.targets = {name: copy.deepcopy(getattr(agent, name)).requires_grad_(False) for name in method.followed}
        self._following = [p for target in self.targets.values() for p in target.parameters()]
        self._followed = [p for name in method.followed for p in getattr(agent, name).parameters()]
        critics = [(f"critics.{name}", p) for name, p in agent.critics.named_parameters()]
        self._critics = Descent(critics, config, context, learners)
        self._policy = Descent(method.policy_parameters(agent), config, context, learners)
        own = [(f"features.{name}", p) for name, p in agent.features.named_parameters()]
        self._features = Descent(own, config, context, learners) if own else None
        self._generator = torch.Generator().manual_seed(context.seed("updates", learners.rank))

    def take(self, rows: np.ndarray) -> None:
        """Add transitions, (n, width), to the replay. Collective: over the learners, where observations are scaled."""
        self.replay.add(rows)
        if (norm := self._agent.features.norm) is not None:
            observations = torch.from_numpy(rows[:, : self._layout.observations]).to(self._device)
            norm.merge(self._world.all_reduce(norm.moments(observations)))

    def prepare(self, updates: int, learning_rate: float) -> None:
        """Let features learn alone, if they do. Collective: over the learners."""
        for _ in range(updates if self._features is not None else 0):
            _, transitions = self._draw()
            self._learn_features(transitions, learning_rate)
        self.prepared = True

    def learn(self, updates: int, learning_rate: float) -> Learnt:
        """Make some updates, at least one. Collective: over the learners."""
        before, every = self.updates, self._config.units_every
        for _ in range(updates):
            drawn, transitions = self._draw()
            if self._features is not None:
                self._learn_features(transitions, learning_rate)
            critic_loss, policy_loss = self._update(drawn, transitions, learning_rate)
        temperature = self._method.temperature(self._agent)
        told = [
            critic_loss,
            policy_loss,
            torch.full_like(critic_loss, torch.nan) if temperature is None else temperature,
        ]
        critic, policy, entropy = torch.stack(told).tolist()  # one wait for a device
        due = every and self.updates // every > before // every
        return Learnt(critic, policy, entropy, drawn.age, self._units(transitions) if due else {})

    @torch.no_grad()
    def _units(self, transitions: Transitions) -> dict[str, float]:
        features, found = self._agent.features, dict[str, float]()
        z_s = features.observe(transitions.observations)
        z_sa = features.act(z_s, transitions.actions)
        for name, body, z in (("policy", self._agent.policy.body, z_s), ("critics", self._agent.critics.body, z_sa)):
            statistics = unit_statistics(body, z)
            found |= {f"{name}_rank": statistics.effective_rank, f"{name}_dormant": statistics.dormant_share}
        return found

    def _draw(self) -> tuple[Drawn, Transitions]:
        with self._clock("data"):
            drawn = self.replay.draw(self._share, self._generator)
            return drawn, self._layout.read(drawn.rows.to(self._device))

    def _learn_features(self, transitions: Transitions, learning_rate: float) -> None:
        assert self._features is not None
        with self._clock("forward"):
            loss = self._agent.features.loss(
                transitions.observations, transitions.actions, transitions.next_observations
            )
        if loss is not None:
            self._features.step(loss * self._part, learning_rate)

    def _update(self, drawn: Drawn, transitions: Transitions, learning_rate: float) -> tuple[Tensor, Tensor]:
        agent, method, features = self._agent, self._method, self._agent.features
        noise = torch.randn(2, self._share, self._layout.actions, generator=self._generator).to(self._device)
        with self._clock("forward"):
            with torch.no_grad():
                z_s = features.observe(transitions.observations)
                z_sa = features.act(z_s, transitions.actions)
                aim = self.aim(transitions, noise[0])
            errors = agent.critics(z_sa) - aim
            squares = errors.square().sum(0)
            if drawn.weights is not None:
                squares = squares * drawn.weights.to(self._device)
            critic_loss = 0.5 * self._part * squares.mean()
        self._critics.step(critic_loss, learning_rate)
        if drawn.weights is not None:
            self.replay.learned(drawn.places, errors.detach().abs().mean(0))
        self.updates += 1
        policy_loss = torch.full_like(critic_loss, torch.nan)
        if self.updates % method.policy_every == 0:
            with self._clock("forward"):
                loss, policy_loss = method.policy_loss(agent, z_s, noise[1])
            self._policy.step(self._part * loss, learning_rate)
            with self._clock("update"), torch.no_grad():
                torch._foreach_lerp_(self._following, self._followed, self._config.tau)
        return critic_loss.detach(), self._part * policy_loss.detach()

    @torch.no_grad()
    def aim(self, transitions: Transitions, noise: Tensor) -> Tensor:
        """What critics should say of transitions, (n,)."""
        z_s = self._agent.features.observe(transitions.next_observations)
        value = self._method.next_value(self._agent, self.targets, z_s, noise)
        goes_on = self._config.discount * (1 - transitions.terminated)
        return torch.addcmul(transitions.rewards, goes_on, value)

    def _descents(self) -> dict[str, Descent]:
        found = {"critics": self._critics, "policy": self._policy}
        return found if self._features is None else {**found, "features": self._features}

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """What must be finite beside the agent."""
        for descent in self._descents().values():
            yield from descent.tensors()

    def state_dict(self) -> Tree:
        """What is the same for all learners."""
        return {
            "updates": self.updates,
            "prepared": self.prepared,
            "targets": {name: target.state_dict() for name, target in self.targets.items()},
            "optimizers": {name: descent.state_dict() for name, descent in self._descents().items()},
        }

    def load_state_dict(self, state: Tree) -> None:
        """Go on from a ``state_dict``."""
        self.updates, self.prepared = state["updates"], state["prepared"]
        for name, target in self.targets.items():
            target.load_state_dict(state["targets"][name])
        for name, descent in self._descents().items():
            descent.load_state_dict(state["optimizers"][name])

    def rank_state_dict(self, *, with_replay: bool) -> Tree:
        """This learner's own."""
        return {
            "generator": self._generator.get_state(),
            "exchanges": {name: descent.rank_state_dict() for name, descent in self._descents().items()},
            "replay": self.replay.state_dict() if with_replay else None,
        }

    def load_rank_state_dicts(self, states: Sequence[Any], *, with_replay: bool) -> None:
        """Go on from those of all learners that saved; with another number of them, transitions are dealt anew."""
        rank, size = self._world.rank, self._world.size
        with fitting("the job's replay"):
            if len(states) == size:
                self._generator.set_state(states[rank]["generator"])
            if with_replay:
                self.replay.load_state_dicts([state["replay"] for state in states[rank::size]])
        for name, descent in self._descents().items():
            descent.load_rank_state_dicts([state["exchanges"].get(name) for state in states])
