"""K-FAC as a job's solver: the same trajectory on any ranks, with uneven shares, micro-batches and checkpoints."""

import pytest
import torch
from torch import nn

from hpcopt.comm.world import alone
from hpcopt.errors import JobError
from hpcopt.exchange import RingConfig
from hpcopt.optim.first_order import AdamWConfig, SgdConfig
from hpcopt.shapes.context import Context
from hpcopt.shapes.solver import Task
from hpcopt.shapes.stats import Scalar
from hpcopt.solvers.kaisa.solver import KaisaConfig, KaisaSolver
from hpcopt.testing.problem import CLASSES, FEATURES, Problem
from hpcopt.testing.solver import Trial

STEPS = 6


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(FEATURES, 7), nn.Tanh(), nn.LayerNorm(7), nn.Linear(7, CLASSES))


PROBLEM = Problem(model=network, dtype=torch.float64)


def trial(**settings) -> Trial:
    config = KaisaConfig(**{"factor_every": 1, "inverse_every": 2, "damping": 0.1, **settings})
    return Trial(config, PROBLEM)


def after(size: int, **settings) -> list[torch.Tensor]:
    """Each rank's parameters."""
    return [run.parameters for run in trial(**settings).run(size, STEPS, total=STEPS)]


def solver(**settings) -> KaisaSolver:
    one = trial(**settings)
    return one.config.build(PROBLEM.task(), one.context(alone(), STEPS))


WAYS = [
    {},
    {"optimizer": AdamWConfig(lr=0.01), "fraction": 0.5},
    {"accumulate": 3, "fraction": 0.34},
    {"optimizer": SgdConfig(lr=0.1, momentum=0.9), "damping_final": 0.01, "clip_norm": 0.1},
]


@pytest.mark.parametrize("settings", WAYS, ids=str)
@pytest.mark.parametrize("size", [2, 3, 4])
def test_ranks_do_not_change_the_trajectory(size, settings):
    (expected,) = after(1, **settings)
    for found in after(size, **settings):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


def test_a_checkpoint_on_other_ranks_continues():
    settings = {"optimizer": SgdConfig(lr=0.1, momentum=0.9), "fraction": 0.5}
    (expected,) = after(1, **settings)
    half = trial(**settings).run(3, 3, total=STEPS)
    for found in trial(**settings).run(2, STEPS - 3, first=3, saved=half, total=STEPS):
        torch.testing.assert_close(found.parameters, expected, rtol=1e-8, atol=1e-10)


def test_metrics_show_that_layers_are_preconditioned():
    stats = solver().step(PROBLEM.batches(0, 1, 1)[0])
    assert {name for name in stats.scalars if name.startswith("cosine.")} == {"cosine.0", "cosine.2", "cosine.3"}
    assert all(0 < stats.scalars[f"cosine.{i}"] < 0.9999 for i in (0, 3))
    assert stats.scalars["kaisa.rejected"] == Scalar(0, "sum")


def test_sampled_targets_need_a_loss_that_shows_its_outputs():
    (sampled,), (plain,) = after(1, fisher="sampled"), after(1)
    assert torch.isfinite(sampled).all()
    assert not torch.equal(sampled, plain)
    config = KaisaConfig(fisher="sampled")
    with pytest.raises(JobError, match="empirical"):
        config.build(Task(network(), lambda model, batch: model(batch)), Context(exchange=RingConfig(), steps=STEPS))


def test_the_plan_names_grid_memory_and_messages():
    plan = solver().plan(flops=1e9)
    assert {"KAISA grid", "KAISA memory", "KAISA times", "KAISA rank 0"} <= set(plan)
