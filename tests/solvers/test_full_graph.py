"""One graph over ranks: dense it is one process, and in few bytes both ends hold the same."""

import copy
import itertools
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World
from hpcopt.compress import QSGD, TopK
from hpcopt.errors import JobError
from hpcopt.exchange import RingConfig
from hpcopt.models.graph.networks import GatConfig, GcnConfig, GraphSageConfig
from hpcopt.models.graph.partition import partition
from hpcopt.optim import AdamWConfig, SgdConfig
from hpcopt.phases import PhaseClock
from hpcopt.shapes.context import Context
from hpcopt.shapes.solver import Task
from hpcopt.solvers.data_parallel import DataParallelConfig
from hpcopt.solvers.full_graph.halo import Halo
from hpcopt.solvers.full_graph.solver import FullGraphConfig, HaloConfig
from hpcopt.testing.problem import Problem, flat
from hpcopt.testing.solver import check_solver
from hpcopt.workloads.node_classification import NodeClassificationConfig
from tests.graph_data import write_graph

RING, ADAM, SGD, STEPS = RingConfig(), AdamWConfig(lr=0.02), SgdConfig(lr=0.1), 5


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_graph(tmp_path_factory.mktemp("graph") / "communities", nodes=80)


@dataclass(frozen=True)
class OnAGraph(Problem):
    """The problem of a solver's contract, on a graph."""

    folder: Path = Path()

    @cached_property
    def _workload(self):
        return NodeClassificationConfig(data=self.folder, model=GcnConfig(hidden=(6, 5))).build(Context())

    def task(self) -> Task:
        return Task(copy.deepcopy(self._workload.model), self._workload.loss)

    def batches(self, rank, size, steps, first=0):
        return list(itertools.islice(self._workload.train_batches(rank, size, first), steps))


def trained(data, config, ranks, model, steps=STEPS):
    """Each rank's parameters, losses and bytes of halos."""
    workloads = [NodeClassificationConfig(data=data, model=model).build(Context()) for _ in range(ranks)]

    def program(transport):
        world = World(transport)
        workload = workloads[world.rank]
        solver = config.build(
            Task(workload.model.double(), lambda m, b: workload.loss(m, b)),
            Context(world=world, exchange=RING, steps=steps),
        )
        stats = []
        for batch in itertools.islice(workload.train_batches(0, 1, 0), steps):
            wide = copy.copy(batch)
            object.__setattr__(wide, "features", features[world.rank].setdefault("x", batch.features.double()))
            stats.append(solver.step(wide))
        sent = [s.scalars["halo_bytes"].value for s in stats] if "halo_bytes" in stats[0].scalars else []
        return flat(solver.model), [s.loss for s in stats], sent

    features = [{} for _ in range(ranks)]
    return run_ranks(ranks, program)


@pytest.mark.parametrize(
    "model",
    [GcnConfig(hidden=(6, 5)), GraphSageConfig(hidden=(6, 5)), GatConfig(hidden=(6, 4), heads=2)],
    ids=lambda model: model.name,
)
def test_dense_halos_are_one_process(data, model):
    """In float64, so that nothing but the order of sums differs."""
    expected, losses, _ = trained(data, DataParallelConfig(optimizer=SGD), 1, model)[0]
    for ranks in (2, 3, 4):
        found = trained(data, FullGraphConfig(optimizer=SGD), ranks, model)
        for parameters, _, _ in found:
            torch.testing.assert_close(parameters, expected, rtol=0, atol=1e-6)
        assert np.allclose(np.sum([each for _, each, _ in found], 0), losses, rtol=0, atol=1e-6)


def test_the_bytes_of_halos_are_those_of_the_border(data):
    """Rows of neighbours elsewhere: of the inputs once, and of each later layer's products forward and back."""
    graph = NodeClassificationConfig(data=data).build(Context())._graph
    of = partition(graph.indptr.numpy(), graph.indices.numpy(), 3)
    rows = np.repeat(np.arange(len(graph)), np.diff(graph.indptr.numpy()))
    border = len({(i, of[j]) for i, j in zip(rows, graph.indices.numpy(), strict=True) if of[i] != of[j]})
    sent = [each for _, _, each in trained(data, FullGraphConfig(optimizer=SGD), 3, GcnConfig(hidden=(6, 5)))]
    each_step = border * 2 * (5 + 3) * 8  # products of the second and the third layer, float64
    assert np.sum(sent, 0).tolist() == [border * 512 * 8 + each_step, *[each_step] * (STEPS - 1)]


def test_stale_halos_travel_in_some_steps(data):
    fresh = trained(data, FullGraphConfig(optimizer=SGD), 2, GcnConfig(hidden=(6, 5)))
    stale = trained(data, FullGraphConfig(optimizer=SGD, halo=HaloConfig(every=3)), 2, GcnConfig(hidden=(6, 5)))
    bytes_of = np.sum([sent for _, _, sent in stale], 0)
    assert bytes_of.tolist()[1:3] == [0, 0] and bytes_of[3] > 0 and bytes_of[4] == 0
    assert not torch.equal(stale[0][0], fresh[0][0])
    assert torch.equal(stale[0][0], stale[1][0])
    assert stale[0][1][0] == fresh[0][1][0], "the first step has nothing stale"


@pytest.mark.parametrize("codec", [TopK(fraction=0.3), QSGD()], ids=lambda codec: codec.name)
def test_what_is_fed_back_arrives(data, codec):
    """With parameters at rest the changes go to zero, and so do the halos' errors: the gradient is the dense one."""
    still, steps = SgdConfig(lr=1e-30, momentum=0), 60

    def losses(halo):
        config = FullGraphConfig(optimizer=still, halo=halo)
        return _float32(data, config, steps)

    dense, coded = losses(HaloConfig()), losses(HaloConfig(codec=codec))
    assert coded[-1] == pytest.approx(dense[-1], abs=1e-6)


def _float32(data, config, steps):
    problem = OnAGraph(folder=data)
    tasks = [problem.task() for _ in range(2)]

    def program(transport):
        world = World(transport)
        solver = config.build(tasks[world.rank], Context(world=world, exchange=RING, steps=steps))
        return [solver.step(batch).loss for batch in problem.batches(0, 1, steps)]

    return np.sum(run_ranks(2, program), 0)


def test_a_codec_that_enlarges_its_errors_is_damped():
    """Rows that stay: with omega > 1 undamped changes would go further off each time; damped, omega / (1 + omega) of
    the square is left in the mean, at most.
    """
    codec, rounds = QSGD(bits=2), 40
    omega = codec.variance(16 * 64)
    assert omega is not None and omega > 1

    def program(transport) -> float:
        world = World(transport)
        halo = Halo(world, codec, 1, seed=0, clock=PhaseClock())
        other = 1 - world.rank
        rows = torch.randn(16, 64, generator=torch.Generator().manual_seed(world.rank))
        theirs = torch.randn(16, 64, generator=torch.Generator().manual_seed(other))
        halo.exchange(1, "forward", {other: torch.zeros(16, 64)}, {other: 16})
        for step in range(rounds):
            halo.begin(step)
            here = halo.exchange(1, "forward", {other: rows}, {other: 16})[other]
        return float((here - theirs).square().sum() / theirs.square().sum())

    left = (omega / (1 + omega)) ** rounds
    found = run_ranks(2, program)
    assert all(0 < square < left for square in found), (found, left)


def test_few_bytes_train(data):
    dense = _float32(data, FullGraphConfig(optimizer=ADAM), 30)
    coded = _float32(data, FullGraphConfig(optimizer=ADAM, halo=HaloConfig(codec=TopK(fraction=0.1))), 30)
    assert dense[-1] < 0.7 * dense[0] and coded[-1] < dense[-1] + 0.1 * dense[0]


def test_the_contract_of_solvers(data):
    check_solver(FullGraphConfig(optimizer=SGD), problem=OnAGraph(folder=data), ranks=(1, 3))


def test_the_contract_with_changes_in_a_codec(data):
    config = FullGraphConfig(optimizer=ADAM, halo=HaloConfig(codec=TopK(fraction=0.2), every=2))
    check_solver(config, problem=OnAGraph(folder=data), ranks=(2,), same_curve=False)


def test_ranks_without_samples_take_part(data):
    """A batch of two nodes leaves one of three ranks without any."""
    workloads = [
        NodeClassificationConfig(data=data, batch=2, model=GcnConfig(hidden=(4,))).build(Context()) for _ in range(3)
    ]

    def program(transport):
        world = World(transport)
        workload = workloads[world.rank]
        solver = FullGraphConfig(optimizer=SGD).build(
            Task(workload.model, workload.loss), Context(world=world, exchange=RING, steps=3)
        )
        return [solver.step(b).loss for b in itertools.islice(workload.train_batches(0, 1, 0), 3)], flat(solver.model)

    found = run_ranks(3, program)
    assert all(torch.equal(parameters, found[0][1]) for _, parameters in found)
    assert np.isfinite([losses for losses, _ in found]).all()


def test_what_does_not_fit(data):
    solver = FullGraphConfig().build(Problem().task(), Context(exchange=RING, steps=1))
    with pytest.raises(JobError, match="node_classification"):
        solver.step(Problem().batches(0, 1, 1)[0])
    workload = NodeClassificationConfig(data=data, clusters=8, batch=2).build(Context())
    solver = FullGraphConfig().build(Task(workload.model, workload.loss), Context(exchange=RING, steps=2))
    with pytest.raises(JobError, match="leave \\[workload\\] clusters out"):
        for batch in itertools.islice(workload.train_batches(0, 1, 0), 2):
            solver.step(batch)
    with pytest.raises(ValidationError, match="leave accumulate out"):
        FullGraphConfig(accumulate=2)
