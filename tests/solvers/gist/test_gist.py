"""GIST against what its paper says of sub-networks, plain training, and a network cut by hand."""

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World, alone
from hpcopt.errors import JobError
from hpcopt.models.graph.networks import GatConfig, GcnConfig, GraphSageConfig
from hpcopt.models.hidden import hidden_axes, widths
from hpcopt.optim import AdamWConfig, SgdConfig
from hpcopt.shapes.context import Context
from hpcopt.shapes.solver import Task
from hpcopt.solvers.data_parallel import DataParallelConfig
from hpcopt.solvers.gist.arrangement import Arrangement, members
from hpcopt.solvers.gist.cell import Cell, Place, initial
from hpcopt.solvers.gist.solver import GistConfig
from hpcopt.solvers.gist.travel import rearrange
from hpcopt.testing.problem import Problem, flat
from hpcopt.testing.solver import Trial, check_solver
from hpcopt.workloads.node_classification import NodeClassificationConfig
from tests.graph_data import write_graph

ADAM = AdamWConfig(lr=0.05)


def network() -> nn.Sequential:
    """Hidden layers of 12 and 7 units: 7 is not divisible."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 7), nn.Tanh(), nn.Linear(7, 3))


PROBLEM = Problem(model=network)


@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_chunks_are_disjoint_and_cover(parts):
    for number in range(3):
        arrangement = Arrangement((12, 7), parts, 5, number)
        for layer, width in enumerate((12, 7)):
            chunks = [arrangement.units(layer, part) for part in range(parts)]
            assert sorted(np.concatenate(chunks)) == list(range(width))
            assert {len(chunk) for chunk in chunks} <= {width // parts, -(-width // parts)}
            assert all((np.diff(chunk) > 0).all() for chunk in chunks)
    assert parts == 1 or not np.array_equal(arrangement.units(0, 0), Arrangement((12, 7), parts, 5, 3).units(0, 0))


def test_a_hidden_value_is_trained_in_one_of_m_rounds():
    """P(touched) = 1/m for a value of a hidden matrix: m pairs of chunks of m^2."""
    parts, rounds, touched = 4, 300, np.zeros((8, 12))
    for number in range(rounds):
        arrangement = Arrangement((12, 8), parts, 0, number)
        for part in range(parts):
            touched[np.ix_(arrangement.units(1, part), arrangement.units(0, part))] += 1
    assert touched.min() > 0
    assert touched.mean() / rounds == pytest.approx(1 / parts)
    assert np.abs(touched / rounds - 1 / parts).max() < 5 * (0.25 * 0.75 / rounds) ** 0.5


@pytest.mark.parametrize("optimizer", [ADAM, SgdConfig(lr=0.1, momentum=0.9)], ids=["adamw", "sgd"])
def test_one_part_is_plain_training_to_the_bit(optimizer):
    whole = Trial(GistConfig(parts=1, every=2, optimizer=optimizer), PROBLEM).first(1)[0]
    plain = Trial(DataParallelConfig(optimizer=optimizer), PROBLEM).first(1)[0]
    assert torch.equal(whole.parameters, plain.parameters) and whole.losses == plain.losses


@pytest.mark.parametrize(("ranks", "parts"), [(1, 3), (2, 2), (2, 3), (3, 2), (4, 3)])
def test_without_steps_dealing_anew_is_the_identity(ranks, parts):
    def program(transport):
        world = World(transport)
        context = Context(world=world, steps=9)
        solver = GistConfig(parts=parts, optimizer=ADAM).build(PROBLEM.task(), context)
        for _ in range(3):
            solver._next_round()
        solver.gather()
        return flat(solver.model)

    for found in run_ranks(ranks, program):
        assert torch.equal(found, flat(network()))


def test_values_of_pairs_of_sub_networks_rest_and_others_are_their_owners():
    """After a round's steps: each sub-network's values are what it alone becomes, all others have not changed a bit."""
    config = GistConfig(parts=3, every=50, optimizer=ADAM)
    solver = config.build(PROBLEM.task(), Context(steps=50))
    arrangement = solver._arrangement
    apart = []
    for part in range(3):
        cell = Cell(network(), Place.all_of(network()), part, torch.device("cpu"))
        cell.take(dict(network().named_parameters()), arrangement)
        task = PROBLEM.task()
        sub = DataParallelConfig(optimizer=ADAM).build(
            Task(_dense(cell.module), task.loss, None), Trial(config, PROBLEM).context(alone(), 50)
        )
        for batch in PROBLEM.batches(0, 1, 4):
            sub.step(batch)
        apart.append(dict(sub.model.named_parameters()))
    for batch in PROBLEM.batches(0, 1, 4):
        solver.step(batch)
    solver.gather()
    found, before = dict(solver.model.named_parameters()), dict(network().named_parameters())
    hidden, rests = found["2.weight"].detach(), torch.ones(7, 12, dtype=torch.bool)
    for part in range(3):
        rows, columns = arrangement.units(1, part), arrangement.units(0, part)
        rests[np.ix_(rows, columns)] = False
        torch.testing.assert_close(hidden[np.ix_(rows, columns)], apart[part]["2.weight"], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(found["0.weight"][columns], apart[part]["0.weight"], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(found["4.weight"][:, rows], apart[part]["4.weight"], rtol=1e-5, atol=1e-7)
    assert torch.equal(hidden[rests], before["2.weight"][rests]) and rests.any()
    assert (hidden[~rests] != before["2.weight"][~rests]).all()
    mean = torch.stack([own["4.bias"] for own in apart]).mean(0)
    torch.testing.assert_close(found["4.bias"], mean, rtol=1e-5, atol=1e-7)


def _dense(module: nn.Module) -> nn.Module:
    """A sub-network with memory of its own."""
    twin = copy.deepcopy(module)
    for name, p in module.named_parameters():
        owner, _, leaf = name.rpartition(".")
        setattr(twin.get_submodule(owner), leaf, nn.Parameter(p.detach().clone().contiguous()))
    return twin


@pytest.mark.parametrize(
    "config", [GcnConfig(hidden=(8, 6)), GraphSageConfig(hidden=(8, 6), norm=False), GatConfig(hidden=(8, 8), heads=4)]
)
def test_a_sub_network_gives_what_the_whole_does_with_other_units_at_zero(config, tmp_path):
    workload = NodeClassificationConfig(data=write_graph(tmp_path / "graph"), model=config).build(Context())
    whole, batch = workload.model, next(workload.test_batches(0, 1))
    for bias in (layer.bias for layer in whole.layers):
        nn.init.normal_(bias)
    places = Place.all_of(whole)
    arrangement = Arrangement(tuple(widths(whole)), 2, 0, 0)
    for part in range(2):
        cell = Cell(whole, places, part, torch.device("cpu"))
        cell.take(dict(whole.named_parameters()), arrangement)
        muted = copy.deepcopy(whole)
        axes = hidden_axes(whole)
        for name, p in muted.named_parameters():
            if name.endswith(("weight", "bias")) and axes[name][0] is not None:
                axis = axes[name][0]
                own = arrangement.units(axis.layer, part)
                keep = torch.zeros(len(p) // axis.each, axis.each)
                keep[own] = 1
                with torch.no_grad():
                    p.mul_(keep.view(-1, *[1] * (p.dim() - 1)))
        expected = muted(batch.graph, batch.features)
        torch.testing.assert_close(cell.module(batch.graph, batch.features), expected, rtol=1e-4, atol=1e-5)


def test_one_sub_network_has_an_mth_squared_of_a_hidden_matrix_and_all_hold_every_value_once():
    whole, parts = GcnConfig(hidden=(64, 64)).build(32, 4), 4
    places, arrangement = Place.all_of(whole), Arrangement((64, 64), parts, 0, 0)
    cells = [Cell(whole, places, part, torch.device("cpu")) for part in range(parts)]
    for cell in cells:
        cell.take(dict(whole.named_parameters()), arrangement)
        assert cell.module.layers[1].linear.weight.numel() == 64 * 64 // parts**2
        assert cell.module.layers[1].linear.weight.data_ptr() == cell.held["layers.1.linear.weight"].data_ptr()
    held = sum(x.numel() for cell in cells for x in cell.held.values())
    assert held == sum(p.numel() for p in whole.parameters()) + (parts - 1) * 4  # the bias of the logits


def test_parts_are_dealt_over_ranks():
    assert members(4, 2) == [[0], [0], [1], [1]] and members(2, 4) == [[0, 1], [2, 3]]
    assert members(1, 3) == [[0, 1, 2]] and members(3, 3) == [[0], [1], [2]]


def test_the_contract_of_solvers():
    """The curve depends on the parts, and not on the ranks that train them."""
    check_solver(GistConfig(parts=2, every=2, optimizer=ADAM, clip_norm=1.0), problem=PROBLEM, ranks=(1, 3))


def test_the_contract_with_a_part_for_each_rank():
    check_solver(GistConfig(every=3, optimizer=ADAM, accumulate=2), problem=PROBLEM, ranks=(2, 3), same_curve=False)


def test_more_parts_than_units():
    with pytest.raises(JobError, match="a hidden layer has 7 units"):
        GistConfig(parts=8).build(PROBLEM.task(), Context(steps=1))
    with pytest.raises(JobError, match="allocate = false"):
        GistConfig(ultra_wide=True).build(PROBLEM.task(), Context(steps=1))
    with pytest.raises(JobError, match="buffers"):
        model = GcnConfig(hidden=(4,)).build(3, 2)
        model.register_buffer("count", torch.zeros(1))
        GistConfig().build(Task(model, PROBLEM.task().loss), Context(steps=1))


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("config", [GraphSageConfig(hidden=(12, 8)), GatConfig(hidden=(12, 12), heads=6)])
def test_ultra_wide_is_the_same_as_ordinary(ranks, config, tmp_path):
    folder = write_graph(tmp_path / "graph")

    def trained(wide):
        workloads = [
            NodeClassificationConfig(data=folder, model=config, allocate=not wide).build(Context())
            for _ in range(ranks)
        ]

        def program(transport):
            world = World(transport)
            workload = workloads[world.rank]
            model = workload.model
            if not wide:
                with torch.no_grad():
                    for place in Place.all_of(model):
                        _start(place, model)
            solver = GistConfig(every=2, ultra_wide=wide, optimizer=ADAM).build(
                Task(model, workload.loss), Context(world=world, steps=7)
            )
            losses = [solver.step(batch).loss for batch in itertools.islice(workload.train_batches(0, 1, 0), 7)]
            solver.gather()
            batch = next(workload.test_batches(world.rank, world.size))
            with torch.no_grad():
                return losses, solver.model(batch.graph, batch.features)

        return run_ranks(ranks, program)

    for (losses, logits), (expected_losses, expected) in zip(trained(True), trained(False), strict=True):
        assert losses == expected_losses
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def _start(place, model):
    """A whole parameter as an ultra-wide network begins."""
    p = model.get_parameter(place.name)
    if place.home is None:
        p.copy_(initial(model, place, None, 0))
        return
    rows, each = place.rows(p), place.axis.each
    for unit in range(len(rows) // each):
        rows[unit * each : (unit + 1) * each] = initial(model, place, unit, 0)


@pytest.mark.parametrize(("before", "after"), [(2, 2), (2, 3), (3, 1)])
def test_ultra_wide_resumes_and_is_resharded(before, after, tmp_path):
    """To the bit on as many ranks; on others from the same network."""
    folder = write_graph(tmp_path / "graph")
    config = NodeClassificationConfig(data=folder, model=GcnConfig(hidden=(12, 8)), allocate=False)

    def run(ranks, first, steps, saved=()):
        workloads = [config.build(Context()) for _ in range(ranks)]

        def program(transport):
            world = World(transport)
            workload = workloads[world.rank]
            solver = GistConfig(every=3, ultra_wide=True, optimizer=ADAM).build(
                Task(workload.model, workload.loss), Context(world=world, steps=9)
            )
            if saved:
                solver.load_state_dict(copy.deepcopy(saved[0][0]), [copy.deepcopy(own) for _, own, _ in saved])
            for batch in itertools.islice(workload.train_batches(0, 1, first), steps):
                solver.step(batch)
            solver.gather()
            batch = next(workload.test_batches(0, 1))
            states = copy.deepcopy((solver.state_dict(), solver.rank_state_dict()))
            return *states, solver.model(batch.graph, batch.features)

        return run_ranks(ranks, program)

    saved = run(before, 0, 4)
    begun = run(after, 4, 0, saved)
    torch.testing.assert_close(begun[0][2], saved[0][2], rtol=1e-4, atol=1e-5)
    if before == after:
        straight, resumed = run(before, 0, 8), run(after, 4, 4, saved)
        assert torch.equal(straight[0][2], resumed[0][2])


def test_little_is_held_twice_while_units_travel(monkeypatch):
    """What is in transit at a time stays below a tenth of what a rank holds."""
    from hpcopt.solvers.gist import cell as module

    monkeypatch.setattr(module, "LEAST", 1)
    most = []
    real = torch.Tensor.contiguous

    def watched(x, *args, **kwargs):
        out = real(x, *args, **kwargs)
        most.append(out.numel())
        return out

    whole = GcnConfig(hidden=(64, 64)).build(16, 4)
    places, parts = Place.all_of(whole), 2
    first, second = (Arrangement((64, 64), parts, 0, number) for number in (0, 1))
    cells = [Cell(whole, places, part, torch.device("cpu")) for part in range(parts)]
    for cell in cells:
        cell.take(dict(whole.named_parameters()), first)
    monkeypatch.setattr(torch.Tensor, "contiguous", watched)
    rearrange(alone(), cells, places, members(parts, 1), first, second)
    assert most and max(most) * parts <= 0.1 * cells[0].held["layers.1.linear.weight"].numel()
