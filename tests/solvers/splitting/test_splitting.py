"""The peers do what their papers say: updates lower the objective they are said to minimise, and they learn."""

import copy

import pytest
import torch
from torch import nn

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World, alone
from hpcopt.errors import JobError
from hpcopt.shapes.batch import TensorBatch
from hpcopt.shapes.context import Context
from hpcopt.shapes.solver import Task
from hpcopt.solvers.splitting.altmin import AltMinConfig
from hpcopt.solvers.splitting.bcd import BcdConfig
from hpcopt.solvers.splitting.dladmm import DlAdmmConfig
from hpcopt.solvers.splitting.serial import relu_step
from hpcopt.testing.problem import flat
from tests.solvers.block_admm.problem import LOSS, SAMPLES, batches, network


def whole() -> TensorBatch:
    """All samples as one batch."""
    parts = batches(4)
    tensors = {name: torch.cat([part.tensors[name] for part in parts]) for name in ("x", "y")}
    labelled = {"x": tensors["x"], "y": tensors["y"], "labels": tensors["y"]}
    return TensorBatch(labelled, torch.cat([part.indices for part in parts]), SAMPLES)


def build(config, model: nn.Module, world: World | None = None):
    return config.build(Task(model, LOSS), Context(world=world or alone(), steps=100))


def accuracy(model: nn.Module) -> float:
    batch = whole()
    return float((model(batch.tensors["x"]).argmax(1) == batch.tensors["y"]).double().mean())


def test_relu_step_finds_the_minimum():
    torch.manual_seed(0)
    center, above = torch.randn(2, 300, dtype=torch.float64)
    z = relu_step(center, 0.7, above, 1.3)

    def cost(z):
        return 0.7 * (z - center).square() + 1.3 * (above - z.relu()).square()

    grid = torch.linspace(-5, 5, 5001, dtype=torch.float64)[:, None]
    assert bool((cost(z) <= cost(grid).amin(0) + 1e-9).all())


@torch.no_grad()
def test_every_update_of_bcd_lowers_its_objective():
    model = network(4, activation=nn.ReLU)
    s = build(BcdConfig(), model)
    batch = whole()
    s.step(batch)
    x, targets = s.inputs(batch), s._targets(batch)
    for _ in range(5):
        for i in reversed(range(4)):
            below = s.tensors[f"V{i - 1}"] if i else x
            before = s.objective(x, targets)
            s._update_outputs(i, below, targets) if i == 3 else s._update_hidden(i, below)
            between = s.objective(x, targets)
            s._update_weights(i, below)
            assert s.objective(x, targets) <= between + 1e-9 <= before + 2e-9
        assert s.objective(x, targets) < before


def augmented(s, batch) -> float:
    """dlADMM's augmented Lagrangian."""
    x = s.inputs(batch)
    total = len(batch) * float(LOSS.criterion(s.tensors[f"z{s._last}"], batch))
    for i in range(s._last + 1):
        gap = s._gap(i, x)
        total += 0.5 * s._rho * float(gap.square().sum())
        if i == s._last:
            total += float((s.tensors["u"] * gap).sum())
        else:
            total += 0.5 * s._rho * float((s.tensors[f"a{i}"] - s.tensors[f"z{i}"].relu()).square().sum())
    return total


@torch.no_grad()
def test_every_update_of_dladmm_lowers_its_lagrangian():
    s, batch = build(DlAdmmConfig(rho=1e-3), network(3, activation=nn.ReLU)), whole()
    for _ in range(3):
        s.step(batch)
    x = s.inputs(batch)
    value = augmented(s, batch)
    for i in (2, 1, 0, 1, 2):
        for update in (lambda i=i: s._update_a(i), lambda i=i: s._update_z(i, x, batch),
                       lambda i=i: s._update_b(i, x), lambda i=i: s._update_w(i, x)):  # fmt: skip
            update()
            lower = augmented(s, batch)
            assert lower <= value + 1e-9
            value = lower


def test_the_codes_of_altmin_come_nearer_to_their_goal():
    s, batch = build(AltMinConfig(), network(3)), batches(1)[0]
    inputs = [batch.tensors["x"]]
    for block in s._blocks[:-1]:
        inputs.append(block(inputs[-1]).detach())
    before = s._goal(inputs[2], 2, inputs, batch)
    assert s._goal(s._move(inputs[2], 2, inputs, batch), 2, inputs, batch) < before
    assert [len(block) for block in s._blocks] == [1, 2, 2]


@pytest.mark.parametrize(
    ("config", "steps", "expected"),
    [(BcdConfig(init_std=0.3), 60, 0.85), (DlAdmmConfig(rho=1e-2, init_std=0.3), 150, 0.85)],
)
def test_full_batch_peers_learn(config, steps, expected):
    model = network(3, width=24, activation=nn.ReLU)
    s = build(config, model)
    for _ in range(steps):
        s.step(whole())
    assert accuracy(model) > expected


def test_altmin_learns():
    model = network(3, width=24)
    s = build(AltMinConfig(), model)
    for batch in batches(200):
        s.step(batch)
    assert accuracy(model) > 0.9


@pytest.mark.parametrize("config", [BcdConfig(), DlAdmmConfig(), AltMinConfig()])
def test_a_restart_continues_bit_for_bit(config):
    def model():
        torch.manual_seed(0)
        return network(3, activation=nn.ReLU)

    straight, first = build(config, model()), build(config, model())
    for _ in range(6):
        straight.step(whole())
    for _ in range(3):
        first.step(whole())
    second = build(config, model())
    second.load_state_dict(copy.deepcopy(first.state_dict()), [])
    for _ in range(3):
        second.step(whole())
    assert torch.equal(flat(straight.model), flat(second.model))


def test_what_does_not_suit_them_is_refused():
    with pytest.raises(JobError, match="all training samples"):
        s = build(BcdConfig(), network(activation=nn.ReLU))
        s.step(whole())
        s.step(batches(1)[0])
    with pytest.raises(JobError, match="ReLU"):
        build(DlAdmmConfig(), network(activation=nn.Tanh))
    with pytest.raises(JobError, match="one rank"):
        run_ranks(2, lambda transport: build(AltMinConfig(), network(), World(transport)))
