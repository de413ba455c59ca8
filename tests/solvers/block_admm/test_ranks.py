"""Blocks on several ranks take the path of one process."""

import copy

import pytest
import torch
from torch import nn

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World, connect
from hpcopt.compress import QSGD, Half
from hpcopt.errors import JobError
from hpcopt.optim.first_order import AdamWConfig, SgdConfig
from hpcopt.pipeline.mesh import Mesh
from hpcopt.solvers.block_admm.solver import BlockAdmmConfig
from hpcopt.solvers.block_admm.stage import Flight
from hpcopt.testing.problem import flat
from tests.solvers.block_admm.problem import BATCH, batches, network, solver

STEPS, LAYERS = 10, 4
CONFIG = BlockAdmmConfig(rho=2.0, optimizer=AdamWConfig(lr=1e-2, weight_decay=0))


def trained(
    config: BlockAdmmConfig, size: int, activation=nn.Tanh
) -> list[tuple[torch.Tensor, list[float | None], int]]:
    """Each rank's parameters after the run, its losses, and the bytes it sent in steps."""
    models = [network(LAYERS, activation=activation) for _ in range(size)]

    def program(transport):
        s = solver(config, models[transport.rank], World(transport), STEPS)
        transport.traffic.lap()
        losses = [s.step(batch).loss for batch in batches(STEPS, s.data_rank, s.data_size)]
        sent_bytes = transport.traffic.sent_bytes
        s.gather()
        return flat(s.model), losses, sent_bytes

    return run_ranks(size, program)


@pytest.mark.parametrize(
    "config",
    [CONFIG, CONFIG.model_copy(update={"form": "online"}), CONFIG.model_copy(update={"auxiliaries": "stored"})],
    ids=["batch", "online", "stored"],
)
@pytest.mark.parametrize("size", [2, 3, 4])
def test_a_rank_for_every_block_or_two_takes_the_path_of_one_process(size, config):
    config = config.model_copy(update={"stages": size})
    ((expected, losses, _),) = trained(config.model_copy(update={"stages": 1}), 1)
    for found, own_losses, _ in trained(config, size):
        assert torch.equal(found, expected)
        assert own_losses in (losses, [None] * STEPS)


@pytest.mark.parametrize(("size", "stages"), [(2, 1), (3, 1), (4, 2), (6, 2), (5, None)])
def test_data_groups_take_the_path_of_one_process(size, stages):
    ((expected, losses, _),) = trained(CONFIG, 1)
    results = trained(CONFIG.model_copy(update={"stages": stages}), size)
    for found, _, _ in results:
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
        assert torch.equal(found, results[0][0])
    sums = [sum(own[step] or 0.0 for _, own, _ in results) for step in range(STEPS)]
    assert sums == pytest.approx(losses, rel=1e-6)


def test_boundaries_cost_what_they_should():
    width = 7
    first, middle, last = (sent for _, _, sent in trained(CONFIG.model_copy(update={"blocks": 3, "stages": 3}), 3))
    boundary = STEPS * BATCH * width * 8
    assert (first, middle, last) == (boundary, 2 * boundary, boundary)


@pytest.mark.parametrize("codec", [Half(), QSGD(bits=8)])
def test_messages_go_through_a_codec(codec):
    """Fewer bytes, nearly the same path; the same again, whatever it draws."""
    exact, coded = (trained(CONFIG.model_copy(update={"stages": LAYERS, "codec": c}), LAYERS) for c in (None, codec))
    assert coded[0][2] == STEPS * codec.encode(torch.randn(BATCH * 7), seed=0).numel()
    assert coded[0][2] < 0.4 * exact[0][2]
    start = flat(network(LAYERS))
    assert float((coded[0][0] - exact[0][0]).norm() / (exact[0][0] - start).norm()) < 0.1
    again = trained(CONFIG.model_copy(update={"stages": LAYERS, "codec": codec}), LAYERS)
    assert torch.equal(again[0][0], coded[0][0])


def in_flight_oracle(in_flight: int) -> torch.Tensor:
    """What one process would compute that takes each batch up with weights extrapolated from old ones, and down with
    newer ones: the solver's own sweeps, each on a snapshot of the right age.
    """
    meshes = [Mesh(t, LAYERS, LAYERS, LAYERS) for t in range(LAYERS)]
    s = solver(CONFIG.model_copy(update={"stages": 1, "form": "online"}), network(LAYERS), steps=STEPS)
    history = [[copy.deepcopy(block.layers) for block in s.stage.blocks]]  # weights of each block after k batches
    for number, batch in enumerate(batches(STEPS)):
        newest = [block.layers for block in s.stage.blocks]
        for t, block in enumerate(s.stage.blocks):
            age = min(number, meshes[t].delay(in_flight))
            block.layers = copy.deepcopy(history[number - age][t])
            if number > age:
                with torch.no_grad():
                    before = history[number - age - 1][t].parameters()
                    for p, earlier in zip(block.layers.parameters(), before, strict=True):
                        p.add_(age * (p - earlier))
        flight = Flight(batch, number, 0, CONFIG.rho)
        s._up(flight)
        for block, layers in zip(s.stage.blocks, newest, strict=True):
            block.layers = layers
        for t, block in enumerate(s.stage.blocks[:-1]):  # goals move along with the weights, by way of the empty duals
            flight.duals[t] = flight.anchors[t + 1] - block.forward(flight.inputs[t])
        s._step += 1
        s._flights.append(flight)
        s._update([s._land(1)])
        history.append([copy.deepcopy(block.layers) for block in s.stage.blocks])
    return flat(s.model)


@pytest.mark.parametrize("in_flight", [2, 3, 4])
def test_batches_in_flight_go_up_with_the_weights_expected_when_they_come_down(in_flight):
    config = CONFIG.model_copy(update={"form": "online", "stages": LAYERS, "in_flight": in_flight})
    results = trained(config, LAYERS)
    expected = in_flight_oracle(in_flight)
    for found, _, _ in results:
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert not torch.equal(expected, in_flight_oracle(1))


@pytest.mark.parametrize(("size", "stages"), [(4, 4), (2, 2), (1, 1), (4, 2)])
@pytest.mark.parametrize("accumulate", [2, 4])
def test_micro_batches_in_flight_take_the_path_of_whole_batches(size, stages, accumulate):
    """No weights age: one update a batch, whatever is under way."""
    config = CONFIG.model_copy(update={"curvature": 4.0})  # a bound that no part of a batch is measured for
    ((expected, losses, _),) = trained(config, 1)
    results = trained(config.model_copy(update={"stages": stages, "accumulate": accumulate}), size)
    for found, _, _ in results:
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)
    assert [sum(own[step] or 0.0 for _, own, _ in results) for step in range(STEPS)] == pytest.approx(losses, rel=1e-8)


def test_too_small_batches_and_both_kinds_of_flight_are_refused():
    with pytest.raises(JobError, match="fewer samples"):
        solver(CONFIG.model_copy(update={"accumulate": BATCH + 1}), network()).step(batches(1)[0])
    with pytest.raises(JobError, match="either in_flight or accumulate"):
        solver(CONFIG.model_copy(update={"accumulate": 2, "in_flight": 2}), network())


@pytest.mark.parametrize("size_after", [4, 1, 2])
def test_a_restart_continues_at_any_number_of_ranks(size_after):
    """Bit for bit at the same number; to rounding at another."""
    config = CONFIG.model_copy(update={"in_flight": 2})

    def run(size, first, last, saved=None):
        models = [network(LAYERS) for _ in range(size)]

        def program(transport):
            stages = None if size > 1 else 1
            s = solver(config.model_copy(update={"stages": stages}), models[transport.rank], World(transport), STEPS)
            if saved:
                s.load_state_dict(copy.deepcopy(saved[0][0]), [copy.deepcopy(part) for _, part, _ in saved])
            for batch in batches(last, s.data_rank, s.data_size)[first:]:
                s.step(batch)
                if s._step == 5:
                    s.gather()
            s.gather()
            return s.state_dict(), s.rank_state_dict(), flat(s.model).clone()

        return run_ranks(size, program)

    saved = run(4, 0, 5)
    straight, resumed = run(4, 0, STEPS)[0][2], run(size_after, 5, STEPS, saved)[0][2]
    if size_after == 4:
        assert torch.equal(straight, resumed)
    else:  # other delays from here on, so only close
        torch.testing.assert_close(resumed, run(size_after, 5, STEPS, saved)[0][2], rtol=0, atol=0)
        assert float((resumed - straight).norm() / straight.norm()) < 0.1


def test_a_filling_pipeline_reports_nothing_instead_of_zeros():
    """A rank whose batches are all on their way up has no residual and no loss yet."""
    config = CONFIG.model_copy(update={"stages": 3, "in_flight": 3})

    def program(transport):
        s = solver(config, network(LAYERS), World(transport), STEPS)
        told = [s.step(batch) for batch in batches(5, s.data_rank, s.data_size)]
        s.gather()
        return [stats.loss is not None for stats in told], [len(stats.scalars) for stats in told]

    losses, residuals = zip(*run_ranks(3, program), strict=True)
    assert losses == ([False] * 5, [False] * 5, [True] * 5)
    assert residuals == ([0, 0, 1, 1, 1], [0, 1, 1, 1, 1], [1] * 5)


def test_meshes():
    assert [Mesh.choose(0, size, 4, None).stages for size in (1, 2, 3, 4, 5, 6, 8)] == [1, 2, 3, 4, 1, 3, 4]
    assert [list(Mesh.choose(0, 3, 4, 3).owned(stage)) for stage in range(3)] == [[0, 1], [2], [3]]
    assert [Mesh(r, 4, 4, 4).delay(4) for r in range(4)] == [3, 2, 1, 0]
    assert [Mesh(r, 4, 4, 4).delay(1) for r in range(4)] == [0, 0, 0, 0]
    with pytest.raises(JobError, match="groups of"):
        Mesh.choose(0, 4, 4, 3)
    with pytest.raises(JobError, match="would have none"):
        Mesh.choose(0, 8, 4, 8)


@pytest.mark.parallel([2, 3, 4])
def test_mpi_ranks_take_the_path_of_one_process():
    """Stages, data groups, and groups of stages. Micro-batches have a given bound: only the first would be measured."""
    world = connect()
    splits = [stages for stages in range(1, world.size + 1) if world.size % stages == 0]
    for micro_batches, curvature in ((1, None), (2, 4.0)):
        config = CONFIG.model_copy(update={"optimizer": SgdConfig(lr=0.05), "curvature": curvature})
        ((expected, losses, _),) = trained(config, 1)
        for stages in splits:
            split = config.model_copy(update={"stages": stages, "accumulate": micro_batches})
            s = solver(split, network(LAYERS), world, STEPS)
            own = [s.step(batch).loss for batch in batches(STEPS, s.data_rank, s.data_size)]
            s.gather()
            torch.testing.assert_close(flat(s.model), expected, rtol=1e-6, atol=1e-8)
            everyones = world.all_reduce(torch.tensor([loss or 0.0 for loss in own], dtype=torch.float64))
            assert everyones.tolist() == pytest.approx(losses, rel=1e-6)
    world.close()
