"""Short trainings on tracks."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.transport import Transport
from hpcopt.comm.world import World
from hpcopt.exchange import RingConfig
from hpcopt.models.control.perceptrons import MlpBodyConfig
from hpcopt.shapes.context import Context
from hpcopt.shapes.solver import Task, Tree
from hpcopt.shapes.stats import StepStats
from hpcopt.solvers.actor_critic.solver import ActorCritic, ActorCriticConfig
from hpcopt.testing.problem import flat
from hpcopt.workloads.control.workload import Control, ControlConfig

TRACK = "tests.solvers.actor_critic.worlds:Track"
SMALL = MlpBodyConfig(width=16, depth=1)
SEED = 3


def track(**settings: Any) -> ControlConfig:
    """A workload on tracks, with small networks."""
    return ControlConfig(**{"environment": TRACK, "actor": SMALL, "critic": SMALL, "test": 3, **settings})


def solver(**settings: Any) -> ActorCriticConfig:
    """A solver that begins soon."""
    return ActorCriticConfig(**{"warmup": 8, "batch_size": 16, **settings})


@dataclass(frozen=True)
class Run:
    """One rank's end of a training.

    Attributes:
        stats: of each step.
        parameters: of the gathered agent, flat.
        shared, own: the solver's state.
        solver: itself.
    """

    stats: list[StepStats]
    parameters: Tensor
    shared: Tree
    own: Tree
    solver: ActorCritic

    def told(self, name: str) -> list[float]:
        """A scalar at the steps that have it."""
        found = [stats.scalars[name] for stats in self.stats if name in stats.scalars]
        return [float(getattr(one, "value", one)) for one in found]


def task_of(workload: Control) -> Task:
    """As a job makes it."""
    return Task(workload.model, workload.loss, None, workload.simulation())


def trained(
    size: int, steps: int, workload: ControlConfig, config: ActorCriticConfig, *, saved: list[Run] | None = None
) -> list[Run]:
    """Train on so many ranks, threads, from the start or from what ranks saved."""

    def program(transport: Transport) -> Run:
        context = Context(world=World(transport), exchange=RingConfig(), steps=1000, run_seed=SEED)
        made = config.build(task_of(workload.build(context)), context)
        if saved is not None:
            shared, *own = copy.deepcopy([saved[0].shared, *(run.own for run in saved)])
            made.load_state_dict(shared, own)
        stats = [made.step(None) for _ in range(steps)]
        made.gather()
        state = copy.deepcopy((made.state_dict() if context.world.rank == 0 else None, made.rank_state_dict()))
        return Run(stats, flat(made.model), *state, made)

    return run_ranks(size, program)


def rows_of(runs: list[Run]) -> Tensor:
    """All transitions in the learners' replays."""
    replays = [run.solver._learner.replay for run in runs if run.solver._learner is not None]
    return torch.cat([replay.state_dict()["rows"] for replay in replays])
