"""The solvers' contract, on tracks: late collectors, in turns, several learners, a replay that draws by errors."""

import copy
from functools import cached_property
from typing import Any

import pytest

from hpcopt.shapes.context import Context
from hpcopt.shapes.solver import Task
from hpcopt.solvers.actor_critic.prioritised import PrioritisedReplayConfig
from hpcopt.testing.problem import Problem
from hpcopt.testing.solver import check_solver
from hpcopt.workloads.control.workload import Control
from tests.solvers.actor_critic.tracks import solver, task_of, track


class OfTracks(Problem):
    """Environments in place of samples."""

    def task(self) -> Task:
        made = self._made
        return Task(copy.deepcopy(made.model), made.loss, None, task_of(made).simulation)

    def batches(self, rank: int, size: int, steps: int, first: int = 0) -> list[Any]:
        return [None] * steps

    @cached_property
    def _made(self) -> Control:
        return track(environments=4, batch=4).build(Context())


@pytest.mark.parametrize(
    ("settings", "how"),
    [
        ({"lag": 0}, {}),
        ({"lag": 2, "replay": PrioritisedReplayConfig(capacity=30)}, {"ranks": (2, 3), "same_curve": False}),
        ({"learners": 2}, {"ranks": (2, 4), "same_curve": False}),
    ],
    ids=["in turns", "late", "two learners"],
)
def test_the_contract(settings, how):
    check_solver(solver(warmup=4, **settings), problem=OfTracks(), **how)
