"""K-FAC as a job's solver: the same trajectory on any ranks, with uneven shares, micro-batches and checkpoints."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World, alone
from hpcopt.errors import JobError
from hpcopt.exchange import RingConfig
from hpcopt.optim.first_order import AdamWConfig, SgdConfig
from hpcopt.shapes.batch import TensorBatch
from hpcopt.shapes.context import Context
from hpcopt.shapes.loss import OutputLoss
from hpcopt.shapes.solver import Task
from hpcopt.shapes.stats import Scalar
from hpcopt.solvers.kaisa.solver import KaisaConfig, KaisaSolver

STEPS, SAMPLES = 6, 11
CRITERION = OutputLoss(
    lambda batch: batch.tensors["x"], lambda y, batch: F.cross_entropy(y, batch.tensors["y"]), torch.zeros(1, 5)
)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.LayerNorm(7), nn.Linear(7, 3)).double()


def batches(rank: int, size: int) -> list[TensorBatch]:
    generator = torch.Generator().manual_seed(1)
    result = []
    for _ in range(STEPS):
        x = torch.randn(SAMPLES, 5, generator=generator, dtype=torch.float64)
        y = torch.randint(3, (SAMPLES,), generator=generator)
        mine = torch.tensor_split(torch.arange(SAMPLES), size)[rank]
        result.append(TensorBatch({"x": x[mine], "y": y[mine]}, mine, SAMPLES))
    return result


def solver(world: World, **settings) -> KaisaSolver:
    config = KaisaConfig(**{"factor_every": 1, "inverse_every": 2, "damping": 0.1, **settings})
    return config.build(
        Task(copy.deepcopy(NETWORK), CRITERION), Context(exchange=RingConfig(), world=world, steps=STEPS)
    )


NETWORK = network()


def flat(s: KaisaSolver) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in s.model.parameters()])


def run(world: World, first: int = 0, last: int = STEPS, state=None, **settings) -> KaisaSolver:
    s = solver(world, **settings)
    if state is not None:
        s.load_state_dict(*state)
    for batch in batches(world.rank, world.size)[first:last]:
        s.step(batch)
    return s


WAYS = [
    {},
    {"optimizer": AdamWConfig(lr=0.01), "fraction": 0.5},
    {"accumulate": 3, "fraction": 0.34},
    {"optimizer": SgdConfig(lr=0.1, momentum=0.9), "damping_final": 0.01, "clip_norm": 0.1},
]


@pytest.mark.parametrize("settings", WAYS, ids=str)
@pytest.mark.parametrize("size", [2, 3, 4])
def test_ranks_do_not_change_the_trajectory(size, settings):
    expected = flat(run(alone(), **settings))
    for found in run_ranks(size, lambda t: flat(run(World(t), **settings))):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


def test_a_checkpoint_on_other_ranks_continues():
    settings = {"optimizer": SgdConfig(lr=0.1, momentum=0.9), "fraction": 0.5}
    expected = flat(run(alone(), **settings))

    def half(t):
        s = run(World(t), last=3, **settings)
        return copy.deepcopy(s.state_dict()), copy.deepcopy(s.rank_state_dict())

    states = run_ranks(3, half)
    state = (states[0][0], [part for _, part in states])
    for found in run_ranks(2, lambda t: flat(run(World(t), 3, STEPS, copy.deepcopy(state), **settings))):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


def test_metrics_show_that_layers_are_preconditioned():
    s = solver(alone())
    stats = s.step(batches(0, 1)[0])
    assert {name for name in stats.scalars if name.startswith("cosine.")} == {"cosine.0", "cosine.2", "cosine.3"}
    assert all(0 < stats.scalars[f"cosine.{i}"] < 0.9999 for i in (0, 3))
    assert stats.scalars["kaisa.rejected"] == Scalar(0, "sum")


def test_sampled_targets_need_a_loss_that_shows_its_outputs():
    s = run(alone(), fisher="sampled")
    assert torch.isfinite(flat(s)).all()
    assert not torch.equal(flat(s), flat(run(alone())))
    config = KaisaConfig(fisher="sampled")
    with pytest.raises(JobError, match="empirical"):
        config.build(Task(network(), lambda model, batch: model(batch)), Context(exchange=RingConfig(), steps=STEPS))


def test_the_plan_names_grid_memory_and_messages():
    plan = solver(alone()).plan(flops=1e9)
    assert {"K-FAC grid", "K-FAC memory", "K-FAC times", "K-FAC rank 0"} <= set(plan)
