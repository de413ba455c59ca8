"""What the solver says to tune: it must be so, and nobody is told who chose."""

import statistics
from typing import Any

import pytest
import torch
from torch import nn

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World, alone
from hpcopt.exchange import RingConfig
from hpcopt.optim import SgdConfig
from hpcopt.shapes.context import Context
from hpcopt.shapes.solver import Task
from hpcopt.shapes.stats import Rows, StepStats
from hpcopt.solvers.kaisa.advice import LOOKED_AT
from hpcopt.solvers.kaisa.solver import KaisaConfig
from hpcopt.testing.problem import CLASSES, FEATURES, Problem

STEPS = 40
PROBLEM = Problem()
LOOK = range(STEPS // 10, STEPS // 10 + LOOKED_AT)


class Words(nn.Module):
    """Each feature's sign is a word."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(2, 4), nn.Linear(4 * FEATURES, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.words((x > 0).long()).flatten(1))


class Convolving(nn.Module):
    """The features are a row of pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv1d(1, 2, 3, padding=1), nn.Linear(2 * FEATURES, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(x.unsqueeze(1)).flatten(1))


def run(problem: Problem = PROBLEM, **settings) -> list[StepStats]:
    return on(alone(), problem.task(), problem, settings)


def on(world: World, task: Task, problem: Problem, settings: dict[str, Any]) -> list[StepStats]:
    config = KaisaConfig(**{"factor_every": 5, "inverse_every": 5, **settings})
    solver = config.build(task, Context(world=world, exchange=RingConfig(), steps=STEPS))
    return [solver.step(batch) for batch in problem.batches(world.rank, world.size, LOOK.stop + 2)]


def advice(told: list[StepStats]) -> dict[str, str]:
    """By setting."""
    tables = {step: stats.tables["advice"] for step, stats in enumerate(told) if "advice" in stats.tables}
    assert list(tables) in ([], [LOOK[-1]])  # once, at the end of the look
    found = [table.values for table in tables.values() if isinstance(table, Rows)]
    return dict(zip(found[0]["setting"], found[0]["advice"], strict=True)) if found else {}


def test_steps_that_kl_clipping_shortens_are_counted():
    told = run(optimizer=SgdConfig(lr=1))
    clips = [told[step].scalars["kaisa.clip"] for step in LOOK]
    text = advice(told)["kl_clip"]
    assert f"shortened {sum(clip < 0.5 for clip in clips)} of {LOOKED_AT} steps" in text
    assert f"less than {statistics.median(clips):.2g} of their length" in text


@pytest.mark.parametrize("settings", [{"kl_clip": 1e-3}, {"kl_clip": None}, {"optimizer": SgdConfig(lr=1e-4)}], ids=str)
def test_nothing_is_said_of_a_clip_that_was_chosen_or_shortens_little(settings):
    assert advice(run(**{"optimizer": SgdConfig(lr=1), **settings})) == {}


def test_curvature_under_the_damping_is_seen():
    """The curvature counts in units of the terms of the loss."""
    small = {"terms_per_sample": 1e-6, "optimizer": SgdConfig(lr=1e-4)}
    assert "1.000, which is next to plain SGD" in advice(run(**small))["damping"]
    assert advice(run(**small, damping=0.03)) == {}
    assert advice(run(**{**small, "damping_of": "layer", "damping": 0.1}, kl_clip=None)) == {}


@pytest.mark.parametrize("model, method", [(Words, "Muon"), (Convolving, "Newton-Muon")])
def test_models_on_which_another_method_is_quicker_are_told_of_it(model, method):
    problem = Problem(model=model)
    text = advice(run(problem))["method"]
    assert f" {method} is quicker" in text
    assert 'method = "auto"' in text
    assert advice(run(problem, method="cholesky", optimizer=SgdConfig(lr=1e-4), damping=0.03)) == {}
    assert advice(run(problem, method="auto", optimizer=SgdConfig(lr=1e-4))) == {}


def test_all_of_three_ranks_find_what_one_finds():
    settings = {"optimizer": SgdConfig(lr=1), "fraction": 0.5}
    tasks = [PROBLEM.task() for _ in range(3)]
    found = run_ranks(3, lambda t: on(World(t), tasks[t.rank], PROBLEM, settings))
    assert [advice(told) for told in found] == [advice(run(**settings))] * 3
