"""The properties that make it Block-ADMM, in float64, on one rank."""

import copy
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hpcopt.errors import CheckpointError, JobError
from hpcopt.exchange import RingConfig
from hpcopt.models.nondifferentiable import Sign, TopK
from hpcopt.optim.first_order import AdamWConfig, SgdConfig
from hpcopt.shapes.context import Context
from hpcopt.shapes.solver import Task
from hpcopt.solvers.block_admm.solver import BlockAdmmConfig
from hpcopt.store.checkpoint import Checkpoints
from hpcopt.testing.problem import flat
from tests.solvers.block_admm.problem import BATCH, LOSS, SAMPLES, batches, network, solver

PLAIN = SgdConfig(lr=1e-12, momentum=0.0)  # leaves the weights where they are, and a gradient to look at


def lagrangian(s, flight, goals) -> float:
    """The augmented Lagrangian of one batch at the auxiliaries as they are, without its constant rho/2 |u|^2."""
    return sum(
        float(goal(block.forward(z)).detach())
        for block, z, goal in zip(s.stage.blocks, flight.inputs, goals, strict=True)
    )


def goals_of(s, flight):
    from hpcopt.solvers.block_admm.goal import Fit, Match

    hidden = [Match(z - u, flight.rho) for z, u in zip(flight.inputs[1:], flight.duals, strict=True)]
    return [*hidden, Fit(LOSS.criterion, flight.batch, 0.5)]


def before_going_down(s, batch):
    """Take a batch up and leave it there."""
    from hpcopt.solvers.block_admm.stage import Flight

    flight = Flight(batch, s._step, 0, s._config.rho_at(s._step, s._steps))
    s._up(flight)
    return flight


@pytest.mark.parametrize("activation", [nn.Tanh, nn.Softplus])
@pytest.mark.parametrize("rho", [0.1, 10.0])
def test_sweeping_the_auxiliaries_lowers_the_lagrangian(activation, rho):
    s = solver(BlockAdmmConfig(rho=rho, backtrack=True, z_steps=4), network(4, activation=activation))
    for batch in batches(6):  # with duals that are not zero
        s.step(batch)
    for batch in batches(12)[6:]:
        flight = before_going_down(s, batch)
        before = lagrangian(s, flight, goals_of(s, flight))
        s.stage.down(flight, goals_of(s, flight)[-1])
        assert lagrangian(s, flight, goals_of(s, flight)) < before


def test_a_plain_gradient_step_on_the_weights_lowers_the_lagrangian():
    s = solver(BlockAdmmConfig(rho=1.0, optimizer=SgdConfig(lr=1e-3, momentum=0.0)), network())
    batch = batches(1)[0]
    flight = before_going_down(s, batch)
    s.stage.down(flight, goals_of(s, flight)[-1])
    goals = flight.goals
    before = lagrangian(s, flight, goals)
    for block, z, goal in zip(s.stage.blocks, flight.inputs, goals, strict=True):
        block.begin(1)
        block.learn(z, goal, 1.0)
        block.update(1e-3)
    assert lagrangian(s, flight, goals) < before


def test_power_iteration_finds_the_norm_of_the_jacobian():
    s = solver(BlockAdmmConfig(), network(2, activation=nn.ReLU))
    weight = s.stage.blocks[1].layers[0].weight.detach().clone()
    s.step(batches(1)[0])
    expected = float(torch.linalg.matrix_norm(weight, 2)) ** 2
    assert s.stage.blocks[1]._jacobian_square == pytest.approx(1.1 * expected, rel=1e-3)


class Attention(nn.Module):
    """A row of eight values as two tokens that attend to each other, by torch's own kernel."""

    def forward(self, x):
        tokens = x.view(len(x), 1, 2, 4)
        return F.scaled_dot_product_attention(tokens, tokens, tokens).flatten(1)


def test_power_iteration_goes_through_attention():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), Attention(), nn.Linear(8, 3)).double()
    block = solver(BlockAdmmConfig(blocks=2), net).stage.blocks[1]
    z = torch.randn(1, 8, dtype=torch.float64)
    for _ in range(30):
        block.measure(z, 1.0)
    jacobian = torch.func.jacrev(block.layers)(z).view(3, 8)
    assert block._jacobian_square == pytest.approx(
        1.1 * float(torch.linalg.matrix_norm(jacobian.detach(), 2)) ** 2, rel=1e-3
    )


def test_auxiliaries_and_outputs_come_to_agree():
    s = solver(BlockAdmmConfig(rho=1.0, optimizer=AdamWConfig(lr=1e-2, weight_decay=0)), network(), steps=600)
    residuals = [s.step(batch).scalars["residual"].value for batch in batches(600)]
    mean = [sum(residuals[a:b]) / (b - a) for a, b in pairwise([0, 40, 200, 600])]
    assert mean[0] > mean[1] > mean[2]
    losses = [float(LOSS(s.model, b).detach()) for b in batches(4)]
    assert max(losses) < 0.1


def test_a_fixed_point_satisfies_the_constraints_and_the_duals_are_the_slope():
    """With the weights held, repeated visits with stored auxiliaries are ADMM on the auxiliaries alone."""
    config = BlockAdmmConfig(rho=1.0, auxiliaries="stored", z_steps=60, optimizer=PLAIN)
    s = solver(config, network(2))
    batch = batches(1)[0]
    for _ in range(60):
        residual = s.step(batch).scalars["residual"].value
    assert residual < 1e-10  # |f(z) - z| <= 1e-5 |z|
    z = s.stage._auxiliaries[1].read(batch.indices).requires_grad_()
    (slope,) = torch.autograd.grad(F.cross_entropy(s.stage.blocks[1].layers(z), batch.tensors["y"], reduction="sum"), z)
    torch.testing.assert_close(s.stage._multipliers[0].read(batch.indices), slope, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("auxiliaries", ["stored", "revisited"])
def test_stored_auxiliaries_start_from_the_first_weights_and_revisited_ones_from_the_present(auxiliaries):
    config = BlockAdmmConfig(auxiliaries=auxiliaries, optimizer=AdamWConfig(lr=0.05, weight_decay=0))
    s = solver(config, network())
    first = copy.deepcopy(s.model)
    *before, batch = batches(SAMPLES // BATCH)
    for other in before:
        s.step(other)
    assert not s.stage._auxiliaries[1].known(batch.indices).any()
    found = before_going_down(s, batch).inputs[1]
    starts = [model[:2](batch.tensors["x"]) for model in (first, s.model)]
    assert not torch.allclose(*starts)
    assert torch.equal(found, starts[auxiliaries == "revisited"])


def test_one_small_step_on_the_auxiliaries_is_back_propagation():
    """Online, one step of length a from the seed: block t's gradient is a^(T-t) times that of back-propagation, exactly
    for the first block as every later one holds its own slope still, up to O(a) for the others.
    """
    layers, a = 3, 1e-3
    model = network(layers)
    config = BlockAdmmConfig(form="online", rho=1.0, z_steps=1, curvature=1 / a - 1, optimizer=PLAIN)
    config = config.model_copy(update={"criterion_curvature": 1.0})
    s, batch = solver(config, model), batches(1)[0]
    reference = copy.deepcopy(model)
    LOSS(reference, batch).backward()
    s.step(batch)
    for t, (block, own) in enumerate(zip(s.stage.blocks, [0, 2, 4], strict=True), start=1):
        expected = torch.cat([p.grad.reshape(-1) for p in reference[own].parameters()])
        found = torch.cat([p.grad.reshape(-1) for p in block.layers.parameters()])
        assert float(found.norm()) == pytest.approx(a ** (layers - t) * float(expected.norm()), rel=5e-3)
        cosine = float(F.cosine_similarity(found, expected, dim=0))
        assert cosine > 1 - 1e-5


def test_no_gradient_crosses_a_cut(monkeypatch):
    from hpcopt.solvers.block_admm.block import Block

    s = solver(BlockAdmmConfig(), network())
    seen = []

    def learn(self, z, goal, weight, original=Block.learn):
        others = [p for block in s.stage.blocks if block is not self for p in block.layers.parameters()]
        assert z.is_leaf and not z.requires_grad
        value = goal(self.layers(z))
        slopes = torch.autograd.grad(value, others, retain_graph=True, allow_unused=True)
        assert all(slope is None for slope in slopes)
        assert all(slope is not None for slope in torch.autograd.grad(value, list(self.layers.parameters())))
        seen.append(self)
        return original(self, z, goal, weight)

    monkeypatch.setattr(Block, "learn", learn)
    s.step(batches(1)[0])
    assert seen == s.stage.blocks


def test_duals_of_other_samples_stay_bit_for_bit():
    s = solver(BlockAdmmConfig(rho=1.0, rho_end=5.0), network())
    steps = batches(9)
    for batch in steps[:8]:
        s.step(batch)
    others = torch.tensor([i for i in range(48) if i not in set(steps[8].indices.tolist())])
    before = [table.read(others) for table in s.stage._multipliers.values()]
    mine = [table.read(steps[8].indices) for table in s.stage._multipliers.values()]
    s.step(steps[8])
    assert all(torch.equal(a, t.read(others)) for a, t in zip(before, s.stage._multipliers.values(), strict=True))
    assert not any(
        torch.equal(a, t.read(steps[8].indices)) for a, t in zip(mine, s.stage._multipliers.values(), strict=True)
    )


def test_the_online_form_keeps_nothing():
    s = solver(BlockAdmmConfig(form="online"), network())
    for batch in batches(4):
        s.step(batch)
    assert all(
        len(table.state_dict()["indices"]) == 0
        for table in [*s.stage._multipliers.values(), *s.stage._auxiliaries.values()]
    )


def test_rho_goes_where_it_should():
    config = BlockAdmmConfig(rho=1.0, rho_end=100.0)
    assert [config.rho_at(step, 3) for step in range(3)] == pytest.approx([1, 10, 100])
    linear = config.model_copy(update={"rho_shape": "linear"})
    assert [linear.rho_at(step, 3) for step in range(3)] == pytest.approx([1, 50.5, 100])
    assert BlockAdmmConfig().rho_at(7, 9) == 10.0


@pytest.mark.parametrize("form", ["batch", "online"])
def test_it_learns_as_well_as_back_propagation(form):
    config = BlockAdmmConfig(form=form, optimizer=AdamWConfig(lr=1e-2, weight_decay=0))
    s = solver(config, network(dtype=torch.float32), steps=300)
    for batch in batches(300, dtype=torch.float32):
        s.step(batch)
    everything = [(b.tensors["x"], b.tensors["y"]) for b in batches(4, dtype=torch.float32)]
    assert all(bool((s.model(x).argmax(1) == y).all()) for x, y in everything)


@pytest.mark.parametrize("layer", [Sign(), TopK(5)])
def test_it_trains_below_a_layer_without_a_derivative(layer):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), layer, nn.Linear(32, 3))
    still = model[0].weight.detach().clone()
    s = solver(BlockAdmmConfig(form="online", rho=0.1, optimizer=AdamWConfig(lr=1e-2, weight_decay=0)), model)

    def loss() -> float:
        return sum(float(LOSS(model, b).detach()) for b in batches(4, dtype=torch.float32)) / 4

    for batch in batches(300, dtype=torch.float32):
        s.step(batch)
    trained = loss()
    with torch.no_grad():
        moved = (model[0].weight - still).norm()
        model[0].weight.copy_(still)
    assert moved > 0.1
    assert trained < 0.3 and trained < 0.7 * loss()  # the first layer's new weights are needed for it


@pytest.mark.parametrize(
    "config",
    [
        BlockAdmmConfig(rho_end=1.0),
        BlockAdmmConfig(auxiliaries="stored", measure_every=3),
        BlockAdmmConfig(form="online", optimizer=SgdConfig()),
    ],
)
def test_a_restart_continues_bit_for_bit(config):
    straight, first = solver(config, network()), solver(config, network())
    for batch in batches(12):
        straight.step(batch)
    for batch in batches(3):  # so that some samples are yet to come by
        first.step(batch)
    other = network()
    nn.init.zeros_(other[0].weight)
    second = solver(config, other)
    second.load_state_dict(copy.deepcopy(first.state_dict()), [copy.deepcopy(first.rank_state_dict())])
    for batch in batches(12)[3:]:
        second.step(batch)
    assert torch.equal(flat(straight.model), flat(second.model))
    for t, table in straight.stage._multipliers.items():
        assert torch.equal(table.state_dict()["rows"], second.stage._multipliers[t].state_dict()["rows"])


def test_what_does_not_fit_is_refused():
    with pytest.raises(JobError, match="function of the model's outputs"):
        BlockAdmmConfig().build(
            Task(network(), lambda model, batch: model(batch)), Context(exchange=RingConfig(), steps=1)
        )
    saved = solver(BlockAdmmConfig(), network())
    with pytest.raises(CheckpointError, match="does not fit"):
        solver(BlockAdmmConfig(), network(width=8)).load_state_dict(saved.state_dict(), [saved.rank_state_dict()])
    ends = nn.Sequential(nn.Linear(6, 3), Sign()).double()
    with pytest.raises(JobError, match="end the model with a linear layer"):
        solver(BlockAdmmConfig(), ends).step(batches(1)[0])


def test_a_restart_from_a_checkpoint_file_continues_bit_for_bit(tmp_path):
    config = BlockAdmmConfig(auxiliaries="stored", rho_end=1.0)
    straight, first = solver(config, network()), solver(config, network())
    for batch in batches(12):
        straight.step(batch)
    for batch in batches(7):
        first.step(batch)
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.begin(7)
    checkpoints.write_part(7, "shared", first.state_dict())
    checkpoints.write_part(7, "rank00000", first.rank_state_dict())
    checkpoints.commit(7, ["shared", "rank00000"])
    second = solver(config, network())
    second.load_state_dict(checkpoints.read_part(7, "shared"), [checkpoints.read_part(7, "rank00000")])
    for batch in batches(12)[7:]:
        second.step(batch)
    assert torch.equal(flat(straight.model), flat(second.model))
    assert torch.equal(
        straight.stage._auxiliaries[1].state_dict()["rows"], second.stage._auxiliaries[1].state_dict()["rows"]
    )
