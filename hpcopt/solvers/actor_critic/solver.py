"""Off-policy actor-critic methods over ranks: some collect, some learn (Ota, Jha, Kanezaki 2021, arXiv:2102.07920; the
division of labour is that of Ape-X, Horgan et al. 2018, arXiv:1803.00933).

A step of the run is ``batch`` steps of environments, over all collectors, and ``updates`` updates of the learners. The
first ``learners`` ranks learn, the others collect; with as many ranks as learners, all do both.

Collectors are ``lag`` steps ahead, and that is decided, not raced for: in step k they act by the weights that learners
sent after step k - 1 - lag, and learners have the transitions of step k in their replay when they update. With lag = 1
both work all the time, the one waits for the other only where it is faster, and the run is the same bits whoever is.
With lag = 0 they take turns, as a rank that does both.
"""

import copy
import math
from collections import deque
from collections.abc import Iterator, Sequence
from time import perf_counter
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from hpcopt.comm.world import alone
from hpcopt.errors import JobError, fitting
from hpcopt.families import METHODS, REPLAYS
from hpcopt.models.control.agent import Agent, Policy
from hpcopt.models.control.features import Features
from hpcopt.shapes.context import Context
from hpcopt.shapes.solver import Solver, SolverConfig, Task, Tree
from hpcopt.shapes.stats import Scalar, StepStats, Table
from hpcopt.solvers.actor_critic.collector import Chunk, Collector
from hpcopt.solvers.actor_critic.ended import EndedEpisodes
from hpcopt.solvers.actor_critic.learner import Learner, Learnt
from hpcopt.solvers.actor_critic.method import MethodConfig
from hpcopt.solvers.actor_critic.post import Post
from hpcopt.solvers.actor_critic.replay import ReplayConfig, UniformReplayConfig
from hpcopt.solvers.actor_critic.roles import Roles
from hpcopt.solvers.actor_critic.sac import SacConfig
from hpcopt.solvers.actor_critic.settings import Learning


class ActorCriticConfig(SolverConfig, Learning):
    """Collectors act in environments, learners update an agent from a replay."""

    name: Literal["actor_critic"] = "actor_critic"
    method: Annotated[MethodConfig, METHODS] = Field(SacConfig(), description="what critics and policy aim at")
    replay: Annotated[ReplayConfig, REPLAYS] = Field(UniformReplayConfig(), description="what is kept of the past")
    updates: int = Field(1, ge=1, description="in one step of the run, for batch steps of environments")
    warmup: int = Field(
        100, ge=1, description="steps of environments, over all, with actions drawn evenly, before the first update"
    )
    pretraining: int = Field(0, ge=0, description="updates of features that learn, alone, before all others")
    learners: int = Field(1, ge=1, description="ranks that update the agent; the others collect, or all do both")
    lag: int = Field(
        1, ge=0, description="steps that collectors act ahead of the learners, where these are other ranks; 0: in turns"
    )
    publish_every: int = Field(
        1, ge=1, description="steps from one sending of weights to collectors to the next; adds to the lag"
    )

    @model_validator(mode="after")
    def _every_learner_draws(self) -> Self:
        if self.batch_size < self.learners:
            raise ValueError(
                f"batch_size = {self.batch_size} is less than a transition for each of {self.learners} learners"
            )
        return self

    @property
    def needs(self) -> frozenset[str]:
        """Several learners sum their gradients."""
        return frozenset({"sums"}) if self.learners > 1 else frozenset()

    def build(self, task: Task, context: Context) -> "ActorCritic":
        """Make the solver. Collective.

        Raises:
            JobError: there are no environments, or the ranks do not suit learners and environments.
        """
        return ActorCritic(self, task, context)


class ActorCritic(Solver):
    """The solver.

    Scalars of a step: ``return``, the mean of the training episodes that ended in it, and their number, ``episodes``;
    ``env_steps`` and ``updates`` so far; ``critic_loss``, ``actor_loss`` and ``temperature`` of the last update;
    ``lag``, the largest number of steps between the weights that were acted by and those that were there;
    ``replay_age``, mean steps of environments since the transitions of the last update were added; ``collector_idle``
    and ``learner_idle``, the shares of the step that they waited for each other; ``restarts`` of environments so far.
    Now and then: ``policy_rank`` and ``critics_rank``, effective ranks of the features under their heads, and
    ``policy_dormant`` and ``critics_dormant``, shares of their units (see ``hpcopt.models.control.unit_statistics``).
    Its table ``episodes`` has a row a training episode (``hpcopt.solvers.actor_critic.ended``).
    """

    draws = True

    def __init__(self, config: ActorCriticConfig, task: Task, context: Context) -> None:
        """Start from rank 0's parameters. Collective."""
        agent, simulation, world = task.model, task.simulation, context.world
        if simulation is None or not isinstance(agent, Agent):
            raise JobError(
                '[solver] name = "actor_critic" acts in environments: use [workload] name = "control"'
            ).everywhere()
        self.model, self._agent, self._config, self._simulation = agent, agent, config, simulation
        self._world, self._clock, self._steps = world, context.clock, context.total_steps
        self.data_rank, self.data_size = 0, 1
        self._roles = roles = Roles(config.learners, world.size, simulation.count)
        roles.check()
        self.lockstep = not roles.apart  # collectors are ahead
        world.start_alike(list(agent.state_dict().values()), True)
        layout, learns = simulation.layout, world.rank < config.learners
        learners = alone() if config.learners == 1 else world.split(int(not learns), world.rank)
        method = config.method.build(agent, layout.actions)
        self._learner = None
        if learns:
            self._learner = Learner(agent, config, config.replay, method, layout, context, learners)
        acting = agent.features, agent.policy
        if not learns:  # gather puts newer ones into the agent
            acting = copy.deepcopy(agent.features).cpu(), copy.deepcopy(agent.policy).cpu()
        self._collector, own = None, roles.environments_of(world.rank)
        with world.together():
            if own:
                self._collector = Collector(
                    acting,
                    method,
                    simulation,
                    own,
                    seed=context.seed("collectors"),
                    warmup=config.warmup,
                    clock=context.clock,
                )
        self._acting, self._post = sent_of(*acting), Post(world, layout.width)
        self._waiting = deque[tuple[int, Tensor]]()  # weights that came before their turn
        self._step, self._env_steps, self._filled_from = 0, 0, 0
        self._ended_s = perf_counter()

    def step(self, batch: Any) -> StepStats:
        """Collect, or learn, or both; ``batch`` is not looked at. Without a barrier.

        Raises:
            DataError: an environment fails, or is lost: on this rank alone.
        """
        own, waited_s, scalars = None, 0.0, dict[str, Scalar | float]()
        if self._collector is not None:
            if self._roles.apart:
                waited_s = self._catch_up(self._step - self._config.lag)
            own = self._collector.collect(self._env_steps)
            if self._learner is None:
                self._post.send_chunk(own, self._roles.learner_of(self._world.rank))
        self._env_steps += self._simulation.batch
        loss, rate, chunks = None, None, list[Chunk]()
        if self._learner is not None:
            chunks, waited_s = ([own], 0.0) if own is not None else self._chunks()
            rate = self._config.learning_rate(self._step, self._steps)
            learnt = self._learn(self._learner, chunks, rate)
            scalars |= self._told(self._learner, chunks, learnt)
            loss = None if learnt is None else learnt.critic_loss
        self._step += 1
        if self._learner is not None and self._roles.apart and self._step % self._config.publish_every == 0:
            self._publish()
        now_s = perf_counter()
        if self._roles.apart:
            who = "collector_idle" if self._learner is None else "learner_idle"
            scalars[who] = waited_s / max(now_s - self._ended_s, 1e-9)
        self._ended_s = now_s
        return StepStats(loss, rate, scalars, self._ended_in(chunks))

    def _ended_in(self, chunks: Sequence[Chunk]) -> dict[str, Table]:
        """Episodes that ended in this step: those that rank 0 knows of, or what all learners know together."""
        ended, shared = [one for chunk in chunks for one in chunk.ended], self._config.learners > 1
        return {"episodes": EndedEpisodes(ended, self._env_steps, shared=shared)} if ended or shared else {}

    def _chunks(self) -> tuple[list[Chunk], float]:
        """Those of this step by this learner's collectors, and the seconds that they were waited for."""
        begun_s = perf_counter()
        with self._clock("exchange"):
            chunks = [self._post.chunk(rank) for rank in self._roles.collectors_of(self._world.rank)]
        return chunks, perf_counter() - begun_s

    def _learn(self, learner: Learner, chunks: Sequence[Chunk], learning_rate: float) -> Learnt | None:
        """Take transitions, and update, once there are enough. Round by round, as if one rank had collected all."""
        rows = chunks[0].rows if len(chunks) == 1 else np.concatenate([chunk.rows for chunk in chunks], 1)
        learner.take(rows.reshape(-1, rows.shape[-1]))
        if self._env_steps - self._filled_from < self._config.warmup:
            return None
        if not learner.prepared:
            learner.prepare(self._config.pretraining, learning_rate)
        return learner.learn(self._config.updates, learning_rate)

    def _told(self, learner: Learner, chunks: Sequence[Chunk], learnt: Learnt | None) -> dict[str, Scalar | float]:
        ended = [one.total for chunk in chunks for one in chunk.ended]
        scalars: dict[str, Scalar | float] = {
            "env_steps": self._env_steps,
            "updates": learner.updates,
        }
        if ended:
            scalars |= {"return": sum(ended) / len(ended), "episodes": Scalar(len(ended), "sum")}
        if restarts := sum(chunk.restarts for chunk in chunks):
            scalars["restarts"] = Scalar(restarts, "sum")
        if self._roles.apart:
            scalars["lag"] = Scalar(self._step - min(chunk.version for chunk in chunks), "max")
        if learnt is not None:
            scalars |= {
                "critic_loss": Scalar(learnt.critic_loss, "sum"),
                "actor_loss": Scalar(learnt.policy_loss, "sum"),
                "replay_age": learnt.age * self._config.learners,
                **learnt.units,
            }
            if not math.isnan(learnt.temperature):
                scalars["temperature"] = learnt.temperature
        return scalars

    def _publish(self) -> None:
        """Send the weights that are there after this step. The learners' are the same; each sends to its own."""
        with self._clock("exchange"):
            flat = torch.cat([x.detach().reshape(-1) for x in self._acting])
            self._post.send_weights(self._step, flat, self._roles.collectors_of(self._world.rank))

    def _catch_up(self, step: int) -> float:
        """Act by the newest weights that were sent up to a step; give the seconds that they were waited for."""
        assert self._collector is not None
        step -= step % self._config.publish_every
        begun_s = perf_counter()
        with self._clock("exchange"):
            while self._collector.version < step:
                self._act_by(*(self._waiting.popleft() if self._waiting else self._post.weights()))
        return perf_counter() - begun_s

    @torch.no_grad()
    def _act_by(self, version: int, flat: Tensor) -> None:
        assert self._collector is not None
        pieces = torch.split(flat, [x.numel() for x in self._acting])
        for x, piece in zip(self._acting, pieces, strict=True):
            x.copy_(piece.view_as(x))
        self._collector.version = version

    def gather(self) -> None:
        """Every rank has the agent, and nothing is under way. Collective: a broadcast of the agent."""
        if self._roles.apart and self._collector is not None:
            newest = self._waiting[-1][0] if self._waiting else self._collector.version
            while newest + self._config.publish_every <= self._step:
                self._waiting.append(self._post.weights())
                newest = self._waiting[-1][0]
        self._post.flush()
        for tensor in self.model.state_dict().values():
            self._world.broadcast(tensor)

    def must_be_finite(self) -> Iterator[tuple[str, Tensor]]:
        yield from super().must_be_finite()
        if self._learner is not None:
            yield from self._learner.tensors()

    def plan(self, flops: float) -> dict[str, str]:
        config, simulation, roles = self._config, self._simulation, self._roles
        rounds = simulation.batch // simulation.count
        replay_bytes = 4 * simulation.layout.width * config.replay.capacity
        lines = {
            "parameters": f"{sum(p.numel() for p in self.model.parameters()):,}",
            "step": f"{simulation.batch} steps of {simulation.count} environments, {rounds} of each, and "
            f"{config.updates} updates with {config.batch_size} transitions",
            "replay": f"{config.replay.capacity:,} transitions, at most {replay_bytes / 1e6:,.0f} MB over all learners",
        }
        if not roles.apart:
            return {**lines, "ranks": f"all {roles.ranks} learn and collect"}
        lag = config.lag + config.publish_every - 1
        weights_bytes = 4 * sum(x.numel() for x in self._acting)
        return {
            **lines,
            "roles": f"{roles.learners} learn, {len(roles.collectors)} collect, at most {lag} steps behind",
            "bytes of weights": f"{weights_bytes:,} to each that collects, after every {config.publish_every} steps",
        }

    def state_dict(self) -> Tree:
        return {
            "step": self._step,
            "env_steps": self._env_steps,
            "filled_from": self._filled_from,
            "learners": self._config.learners,
            "has_replay": self._config.replay.checkpoint,
            "model": self.model.state_dict(),
        }

    def rank_state_dict(self) -> Tree:
        """Collectors know nothing of what learners have in common, so it is the first learner's own."""
        learner = self._learner
        return {
            "learners": learner.state_dict() if learner is not None and self._world.rank == 0 else None,
            "learner": None if learner is None else learner.rank_state_dict(with_replay=self._config.replay.checkpoint),
            "collector": None if self._collector is None else self._collector.state_dict(),
            "acting": self._weights_state(),
        }

    def _weights_state(self) -> Tree:
        """What a collector apart from learners acts by, and will: the newer weights that came before their turn."""
        if not self._roles.apart or self._collector is None:
            return None
        return {
            "version": self._collector.version,
            "weights": [x.detach() for x in self._acting],
            "waiting": list(self._waiting),
        }

    def load_state_dict(self, shared: Tree, parts: Sequence[Tree]) -> None:
        """With other ranks or roles than before, each takes up the environments that are now its own, replays are dealt
        over the learners, and collectors act by the newest weights. A replay that is not in the checkpoint, or is not
        enough for all learners, is collected anew: updates wait for ``warmup`` transitions.
        """
        with fitting("the job's agent"), torch.no_grad():
            self.model.load_state_dict(shared["model"])
            self._step, self._env_steps = shared["step"], shared["env_steps"]
            whole = shared["has_replay"] and shared["learners"] >= self._config.learners
            self._filled_from = shared["filled_from"] if whole else self._env_steps
            if self._learner is not None:
                self._learner.load_state_dict(parts[0]["learners"])
        with fitting("the job's ranks"):
            self._waiting.clear()
            alike = len(parts) == self._world.size and shared["learners"] == self._config.learners
            if self._learner is not None:
                own = [part["learner"] for part in parts[: shared["learners"]]]
                self._learner.load_rank_state_dicts(own, with_replay=whole)
            if self._collector is not None:
                mine = [parts[self._world.rank]] if alike else list(parts)
                self._collector.load_state_dicts([part["collector"] for part in mine if part["collector"] is not None])
                if self._roles.apart:
                    self._go_on(mine[0]["acting"] if alike else None)

    @torch.no_grad()
    def _go_on(self, state: Tree) -> None:
        """Act by saved weights, or by the agent's."""
        assert self._collector is not None
        if state is None:
            own = sent_of(self._agent.features, self._agent.policy)
            self._act_by(self._step, torch.cat([x.detach().cpu().reshape(-1) for x in own]))
            return
        self._act_by(state["version"], torch.cat([x.reshape(-1) for x in state["weights"]]))
        self._waiting.extend((version, flat) for version, flat in state["waiting"])


def sent_of(features: Features, policy: Policy) -> list[Tensor]:
    """What of features and policy travels: all that is float32. What a running norm counts by is not acted by."""
    tensors = [x for part in (features, policy) for x in part.state_dict(keep_vars=True).values()]
    return [x for x in tensors if x.dtype == torch.float32]
