"""[run] reproducible = "any ranks": losses, parameters, buffers, optimizers' states and scores are the same bits on any
number of ranks, and across changes of it.
"""

import argparse
import copy
import math
import random
from pathlib import Path
from unittest import mock

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from hpcopt.build import build
from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.virtual import VirtualRanks
from hpcopt.comm.world import World, alone, connect
from hpcopt.errors import JobError, PeerError
from hpcopt.job import Job, read_job
from hpcopt.models.mlp import MlpConfig
from hpcopt.optim.state import optimizer_state
from hpcopt.prepare import prepare
from hpcopt.shapes.batch import TensorBatch
from hpcopt.shapes.context import Context
from hpcopt.solvers.data_parallel import DataParallel
from hpcopt.trainer import loop
from hpcopt.trainer.loop import evaluate
from hpcopt.trainer.signals import StopSignals
from hpcopt.trainer.virtual import DIGEST, virtual_batches
from hpcopt.training import train

STEPS = 5
VIRTUAL = 9  # on a batch of 23 samples: parts of two or three
JOB = """
[run]
steps = 9
reproducible = "any ranks"
virtual_ranks = 9
[workload]
data = "{data}"
batch = 23
[workload.model]
name = "mlp"
[solver.optimizer]
name = "sgd"
momentum = 0.9
lr = 0.1
"""
KAISA = ("solver.name=kaisa", "solver.factor_every=1", "solver.inverse_every=2")
SIGNUM = ("exchange.name=vote", "solver.optimizer.name=signum", "solver.optimizer.lr=0.01")
CASES = {
    "ring": (),
    "native, adamw, clipped, micro-batches": (
        "exchange.name=native",
        "solver.optimizer.name=adamw",
        "solver.optimizer.lr=0.01",
        "solver.clip_norm=0.5",
        "solver.accumulate=2",
    ),
    "lamb": ("solver.optimizer.name=lamb", "solver.optimizer.lr=0.01"),
    "buckets of a few values": ("exchange.bucket_mb=0.001",),
    "without overlap": ("exchange.overlap=false",),
    "a power of two": ("run.virtual_ranks=8",),
    "bounded": ('exchange.codec={name = "bounded", bound = 0.01}',),
    "vote": (*SIGNUM, "solver.optimizer.momentum=0.8"),
    "vote without momentum, ties plus": (*SIGNUM, "solver.optimizer.momentum=0.0", "exchange.ties=plus"),
    "kaisa": KAISA,
    "kaisa, on some ranks": (*KAISA, "solver.fraction=0.3", "solver.method=eigen"),
    "kaisa, sampled targets": (*KAISA, "solver.fisher=sampled", "solver.method=low_rank", "solver.rank=4"),
    "muon": (*KAISA, "solver.method=muon"),
    "soap": (*KAISA, "solver.method=soap", "solver.fraction=0.5"),
    "shampoo": (*KAISA, "solver.method=shampoo", "solver.fraction=0.5"),
}


@pytest.fixture(autouse=True)
def network():
    """Batch normalisation and dropout in it, made where no thread seeds the generator that all share."""
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Flatten(),
        nn.Linear(384, 20),
        nn.ReLU(),
        nn.Linear(20, 10),
    )
    with mock.patch.object(MlpConfig, "build", lambda *_: copy.deepcopy(made)):
        yield made


@pytest.fixture
def job_of(tmp_path, digits):
    path = tmp_path / "job.toml"
    path.write_text(JOB.format(data=digits / "digits"), encoding="utf-8")
    return lambda *settings: read_job(path, settings)


class Run:
    """A job that goes on for some steps on some ranks, and then on others."""

    def __init__(self, job: Job) -> None:
        self._job, self._saved = job, None
        self.step, self.losses = 0, []

    def go(self, ranks: int, steps: int) -> list[torch.Tensor]:
        """Every tensor of the solver's shared state, and the scores."""
        outcomes = run_ranks(ranks, lambda transport: self._program(World(transport), steps))
        _, tensors, scores, shared, _ = outcomes[0]
        self.losses += [math.fsum(parts) for parts in zip(*(outcome[0] for outcome in outcomes), strict=True)]
        for _, others, other_scores, *_ in outcomes:
            assert all(map(same, others, tensors)) and other_scores == scores
        self.step, self._saved = self.step + steps, (shared, [outcome[-1] for outcome in outcomes])
        return [*tensors, torch.tensor(list(scores.values()), dtype=torch.float64)]

    def _program(self, world: World, steps: int):
        built = build(self._job, world)
        workload, solver, virtual = built.workload, built.solver, built.context.virtual
        if self._saved is not None:
            shared, parts = copy.deepcopy(self._saved)
            solver.load_state_dict(shared, parts)
        batches = virtual_batches(workload, virtual, self.step)
        losses = [float(solver.step(next(batches)).loss) for _ in range(steps)]
        scores = evaluate(world, workload, solver.model, virtual)
        shared, own = copy.deepcopy((solver.state_dict(), solver.rank_state_dict()))
        tensors = [*solver.model.state_dict().values(), *leaves(optimizer_state(solver.optimizers[0]))]
        return losses, [x.clone() for x in tensors], scores, shared, own


def leaves(tree):
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, dict | list | tuple):
        for part in tree.values() if isinstance(tree, dict) else tree:
            yield from leaves(part)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()


@pytest.mark.parametrize("case", CASES)
def test_the_bits_are_the_same_on_any_number_of_ranks(job_of, case):
    job = job_of(*CASES[case])
    one = Run(job)
    expected = one.go(1, STEPS)
    assert all(map(math.isfinite, one.losses)) and len(set(one.losses)) == STEPS
    for ranks in (2, 3, 4, 7):
        run = Run(job)
        found = run.go(ranks, STEPS)
        assert run.losses == one.losses, f"losses on {ranks} ranks"
        assert all(map(same, found, expected)), f"state on {ranks} ranks"


@pytest.mark.parametrize("case", ["ring", "bounded", "vote", "kaisa, on some ranks", "soap"])
def test_ranks_may_change_on_the_way(job_of, case):
    """Four ranks, then three, then five, as from checkpoints."""
    job = job_of(*CASES[case])
    one, moved = Run(job), Run(job)
    expected = one.go(1, 6)
    for ranks in (4, 3, 5):
        found = moved.go(ranks, 2)
    assert moved.losses == one.losses
    assert all(map(same, found, expected))


def test_one_virtual_rank_is_the_serial_run(job_of):
    """The same numbers as plain torch on the whole batch, but for rounding; nothing is drawn."""
    job = job_of("run.virtual_ranks=1", "workload.batch=64")
    with mock.patch.object(nn.Dropout, "forward", lambda self, x: x):
        run = Run(job)
        run.go(1, 3)
        model = job.workload.model.build((1, 8, 8), 10)
        workload = job.workload.build(Context(run_seed=job.run.seed))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _, batch, found in zip(range(3), workload.train_batches(0, 1, 0), run.losses, strict=False):
            loss = workload.loss(model, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            assert loss.item() == pytest.approx(found, rel=1e-5)


@pytest.mark.parametrize("case", ["buckets of a few values", "bounded", "vote", "kaisa, sampled targets", "soap"])
def test_virtual_ranks_on_one_rank_do_what_so_many_ranks_do(job_of, case):
    """The same numbers as an ordinary job of as many ranks, but for rounding; no layer draws."""
    settings = (*CASES[case], "run.virtual_ranks=4")

    def ordinary(transport):
        world = World(transport)
        built = build(job_of(*settings, "run.reproducible=off"), world)
        batches = built.workload.train_batches(world.rank, world.size, 0)
        return [float(built.solver.step(next(batches)).loss) for _ in range(4)]

    with mock.patch.object(nn.Dropout, "forward", lambda self, x: x):
        run = Run(job_of(*settings))
        run.go(1, 4)
        expected = [sum(parts) for parts in zip(*run_ranks(4, ordinary), strict=True)]
    assert run.losses == pytest.approx(expected, rel=1e-4)


def test_running_means_are_those_over_virtual_ranks(job_of, network):
    run = Run(job_of())
    run.go(3, 1)
    state = run._saved[0]["model"]
    job = job_of()
    workload = job.workload.build(Context(run_seed=job.run.seed))
    means = []
    for virtual_rank in range(VIRTUAL):
        batch = next(workload.train_batches(virtual_rank, VIRTUAL, 0))
        means.append(network[0](workload.pictures(batch)).mean((0, 2, 3)).detach())
    torch.testing.assert_close(state["1.running_mean"], 0.1 * torch.stack(means).mean(0), rtol=1e-4, atol=1e-6)
    assert int(state["1.num_batches_tracked"]) == 1


class Buffered(nn.Module):
    """Buffers of many kinds, one of which each pass of training replaces."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)
        self.register_buffer("mask", torch.tensor([0.0, -math.inf, -0.0, math.inf]))
        self.register_buffer("turns", torch.tensor([1j, 2.0 - 1j]))
        self.register_buffer("large", torch.tensor([2**62 + 1, -7]))
        self.register_buffer("flags", torch.tensor([True, False]))
        self.register_buffer("mean", torch.zeros(64))
        self.register_buffer("turned", torch.zeros(1, dtype=torch.complex64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(1)
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
            self.turned += 1j
        return self.linear(x - self.mean)


def test_buffers_of_any_kind_move_alike_and_constants_stay(job_of):
    states = []
    with mock.patch.object(MlpConfig, "build", lambda *_: Buffered()):
        for ranks in (1, 2, 5):
            run = Run(job_of())
            run.go(ranks, 2)
            states.append(run._saved[0]["model"])
    for name, buffer in Buffered().named_buffers():
        assert all(state[name].dtype == buffer.dtype for state in states)
        bits = {bytes(state[name].flatten().view(torch.uint8).numpy()) for state in states}
        assert len(bits) == 1, name
        if name in ("mask", "turns", "large", "flags"):
            assert bits == {bytes(buffer.view(torch.uint8).numpy())}, name
    assert float(states[0]["mean"].norm()) > 0
    assert states[0]["turned"].tolist() == [2j]


class Drawing(nn.Module):
    """Notes what it draws, of each generator."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.drawn = nn.Linear(64, 10), []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.drawn.append((float(torch.rand(())), float(np.random.random()), random.random()))
        return self.linear(x.flatten(1))


def test_each_virtual_rank_draws_what_is_its_own_in_each_step(job_of):
    """While it computes and, unlike that, while it reads."""
    seen = []
    for ranks in (1, 3):
        made: list[Drawing] = []
        with mock.patch.object(MlpConfig, "build", lambda *_, made=made: made.append(Drawing()) or made[-1]):
            Run(job_of()).go(ranks, 2)
        seen.append(sorted(triple for model in made for triple in model.drawn))
    assert seen[0] == seen[1]

    class Reading:
        ahead = False

        def train_batches(self, rank: int, size: int, start: int):
            while True:
                triple = (float(torch.rand(())), float(np.random.random()), random.random())
                yield TensorBatch({"drawn": torch.tensor([triple], dtype=torch.float64)}, torch.arange(1), size)

    read = []
    for ranks in (1, 3):
        all_batches = [virtual_batches(Reading(), VirtualRanks(VIRTUAL, rank, ranks, 5), 0) for rank in range(ranks)]
        steps = [
            part.tensors["drawn"][0].tolist()
            for _ in range(2)
            for batches in all_batches
            for part in next(batches).parts
        ]
        read.append(steps)
    assert read[0] == read[1]
    for drawn in (seen[0], read[0]):
        for column in zip(*drawn, strict=True):
            assert len(set(column)) == 2 * VIRTUAL
    assert VirtualRanks(1).seed_of(0, 0, "data") != VirtualRanks(1).seed_of(0, 0, "model")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("exchange.name=two_phase",), "two_phase"),
        (("exchange.codec.name=half",), "half"),
        (("exchange.name=auto",), "auto"),
        ((*SIGNUM, "exchange.weights=learned"), "weights"),
        (("solver.name=local",), "local"),
        (("solver.shard_optimizer=true",), "shard_optimizer"),
        (("solver.optimizer.name=adahessian",), "adahessian"),
        ((*KAISA, "solver.method=ekfac"), "ekfac"),
        ((*KAISA, "solver.damping_every=5"), "damping_every"),
        ((*KAISA, "solver.wire_dtype=bfloat16"), "wire_dtype"),
        (("workload.compile=true",), "compile"),
        (("run.device=cuda",), "device"),
        (("run.backend=nccl",), "nccl"),
        (("run.virtual_ranks=24",), "virtual_ranks = 23"),
    ],
)
def test_what_depends_on_the_number_of_ranks_is_refused_by_name(job_of, settings, said):
    with pytest.raises(JobError, match=said) as refused:
        job_of(*settings)
    assert refused.value.on_every_rank


def test_more_ranks_than_virtual_ones_are_refused(job_of):
    with pytest.raises(JobError, match="virtual_ranks = 4 or more"):
        run_ranks(4, lambda transport: build(job_of("run.virtual_ranks=3"), World(transport)))


class Unheard(StopSignals):
    """Ranks that are threads have no signals."""

    def listen_for(self, name: str) -> None:
        pass


def train_to_the_end(job: Job, folder: Path, ranks: int) -> dict[str, bytes]:
    """What the command does; columns of metrics that may not differ."""
    options = argparse.Namespace(run_dir=folder / f"on {ranks}", fresh=False, resume=False)
    with mock.patch.object(loop, "DIGEST_EVERY", 2):
        run_ranks(ranks, lambda transport: train(job, World(transport), options, Unheard()))
    with h5py.File(folder / f"on {ranks}" / "metrics.h5") as file:
        digests = file["steps"][DIGEST][:]
        assert np.isfinite(digests).tolist() == [False, True, False, True, False]
        columns = {name: file["steps"][name][:] for name in ("loss", DIGEST, "learning_rate")}
        columns |= {name: file["evaluations"][name][:] for name in ("test_loss", "test_accuracy")}
    return {name: column.tobytes() for name, column in columns.items()}


def test_metrics_have_the_same_bits(job_of, tmp_path):
    job = job_of("run.steps=5", "run.evaluate_every=3")
    assert train_to_the_end(job, tmp_path, 1) == train_to_the_end(job, tmp_path, 3)


def test_ranks_that_come_apart_are_named(job_of, tmp_path):
    """By the digest of the parameters, and the job ends."""
    step = DataParallel.step

    def drifting(self, batch):
        stats = step(self, batch)
        if self.data_rank == 2:
            with torch.no_grad():
                self._parameters[0].view(-1)[3] += 1e-6
        return stats

    with (
        mock.patch.object(DataParallel, "step", drifting),
        pytest.raises(PeerError, match=r"the parameters are not the same on all ranks: ranks \[2\] differ"),
    ):
        train_to_the_end(job_of("run.steps=5"), tmp_path, 3)


@pytest.mark.parallel([3])
def test_the_bits_are_the_same_over_mpi(shared_tmp_path, network):
    """Beside one rank alone, in this process."""
    from mpi4py import MPI

    if MPI.COMM_WORLD.rank == 0:
        prepare("digits", shared_tmp_path)
        text = JOB.format(data=shared_tmp_path / "digits")
        (shared_tmp_path / "job.toml").write_text(text, encoding="utf-8")
    MPI.COMM_WORLD.barrier()
    job = read_job(shared_tmp_path / "job.toml", [*KAISA, "solver.fraction=0.5"])
    losses, tensors, scores, *_ = Run(job)._program(connect(), 3)
    everyones = MPI.COMM_WORLD.allgather(losses)
    alone_losses, alone_tensors, alone_scores, *_ = Run(job)._program(alone(), 3)
    assert [sum(parts) for parts in zip(*everyones, strict=True)] == alone_losses
    assert all(map(same, tensors, alone_tensors)) and scores == alone_scores
