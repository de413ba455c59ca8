"""Checkpoints of every solver and exchange, saved by two ranks, go on from the same parameters on 1, 3 and 4."""

import copy
import math
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

from hpcopt.build import build
from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World
from hpcopt.job import read_job
from hpcopt.phases import PhaseClock
from hpcopt.store import checkpoint
from hpcopt.store.background import Snapshot
from hpcopt.store.checkpoint import SHARED, Checkpoints, rank_part
from hpcopt.testing.solver import summed
from hpcopt.trainer.resume import Position, restore
from hpcopt.trainer.saver import Saver
from tests.store.test_tree import same

STEPS, AFTER = 6, 3
SGD, SIGNUM = ("solver.optimizer.name=sgd",), ("solver.optimizer.name=signum", "solver.optimizer.lr=0.001")
# Settings beside those of a multilayer perceptron on the digits, and whether other ranks take the same path.
CASES = {
    "dense": (SGD, True),
    "adamw": (("solver.optimizer.name=adamw", "solver.optimizer.lr=0.01"), True),
    "lamb": (("solver.optimizer.name=lamb", "solver.optimizer.lr=0.01"), True),
    "native": ((*SGD, "exchange.name=native"), True),
    "powersgd": ((*SGD, "exchange.codec.name=powersgd"), False),
    "qsgd": ((*SGD, "exchange.name=two_phase"), False),
    "sign with feedback": ((*SGD, "exchange.name=two_phase", "exchange.codec.name=sign"), False),
    "top-k with feedback": ((*SGD, "exchange.name=two_phase", "exchange.codec.name=topk"), False),
    "vote": ((*SIGNUM, "exchange.name=vote"), False),
    "gossip": ((*SGD, "solver.name=gossip"), False),
    "leader": ((*SGD, "solver.name=leader", "solver.every=2"), False),
    "local": ((*SGD, "solver.name=local", "solver.every=4", "solver.fragments=2", "solver.delay=1"), False),
    "local, gossip": ((*SGD, "solver.name=local", "solver.every=4", "solver.gossip={}"), False),
    "kaisa": ((*SGD, "solver.name=kaisa", "solver.factor_every=1", "solver.inverse_every=2"), True),
    "block_admm": (("solver.name=block_admm", "solver.optimizer.name=adamw"), False),
    "deepfacto": (("solver.name=deepfacto", "workload.model.name=factor_mlp", "workload.model.factors=5"), False),
}


@pytest.fixture
def data(digits) -> Path:
    return digits / "digits"


class Session:
    """A job's solver on one rank."""

    def __init__(self, transport, job) -> None:
        self.world = World(transport)
        built = build(job, self.world)
        self.workload, self.solver = built.workload, built.solver

    def train(self, first: int, count: int) -> list[float]:
        """Losses of the whole batches; of a pipeline the ranks at its end have them."""
        batches = self.workload.train_batches(self.solver.data_rank, self.solver.data_size, first)
        return summed(self.world, [self.solver.step(next(batches)).loss for _ in range(count)])

    def model(self) -> dict[str, torch.Tensor]:
        self.solver.gather()
        return copy.deepcopy(self.solver.state_dict()["model"])


def job_of(folder: Path, data: Path, settings: tuple[str, ...]):
    path = folder / "job.toml"
    path.write_text(
        f'[run]\nname = "t"\nsteps = 9\n[workload]\ndata = "{data}"\nbatch = 64\n'
        '[workload.model]\nname = "mlp"\nhidden = [24, 16]\n'
    )
    return read_job(path, list(settings))


@pytest.mark.parametrize("case", CASES)
def test_what_is_copied_beside_the_next_step_is_the_state_before_it(tmp_path, data, case, monkeypatch):
    """Were a tensor copied late that something else than the optimizer changes, or did the optimizer not wait, then the
    checkpoint would not be the one that is written with nothing else going on.
    """
    job, complete = job_of(tmp_path, data, CASES[case][0]), Snapshot.complete
    monkeypatch.setattr(Snapshot, "complete", lambda self: (time.sleep(0.1), complete(self)))

    def save(transport):
        session = Session(transport, job)
        session.train(0, STEPS)
        at_once = Saver(session.world, Checkpoints(tmp_path / "at_once", 1), False, 0, clock=PhaseClock())
        beside = Saver(session.world, Checkpoints(tmp_path / "beside", 1), True, 0, clock=PhaseClock())
        at_once.save(Position(step=STEPS, ranks=2, job=job.as_dict()), session.solver)
        at_once.finish()
        beside.save(Position(step=STEPS, ranks=2, job=job.as_dict()), session.solver)
        session.train(STEPS, AFTER)
        beside.finish()

    run_ranks(2, save)
    for part in (SHARED, rank_part(0), rank_part(1)):
        found = [Checkpoints(tmp_path / name, 1).read_part(STEPS, part) for name in ("at_once", "beside")]
        assert same(*(tree["solver"] for tree in found))


@pytest.mark.parametrize("case", CASES)
def test_other_ranks_go_on_from_the_same_parameters(tmp_path, data, case):
    settings, exact = CASES[case]
    job = job_of(tmp_path, data, settings)

    def save(transport):
        session = Session(transport, job)
        session.train(0, STEPS)
        saver = Saver(session.world, Checkpoints(tmp_path, 1), False, 0, clock=PhaseClock())
        saver.save(Position(step=STEPS, ranks=2, job=job.as_dict()), session.solver)
        saver.finish()
        before = session.model()
        losses = session.train(STEPS, AFTER)
        return before, losses, session.model()

    before, losses, after = run_ranks(2, save)[0]

    def go_on(transport):
        session = Session(transport, job)
        position = restore(session.world, Checkpoints(tmp_path, 1), session.solver, job.as_dict(), lambda text: None)
        assert (position.step, position.ranks) == (STEPS, 2)
        return session.model(), session.train(STEPS, AFTER), session.model()

    rounding = 1e-6 if "gossip" in case else 0.0  # there the model is the mean over ranks, which rounds
    for ranks in (1, 3, 4):
        for found, more, end in run_ranks(ranks, go_on):
            for name, tensor in before.items():
                torch.testing.assert_close(found[name], tensor, rtol=rounding, atol=rounding)
            assert all(map(math.isfinite, more))
            if exact:
                assert more == pytest.approx(losses, rel=1e-4)
                for name, tensor in after.items():
                    torch.testing.assert_close(end[name], tensor, rtol=1e-3, atol=1e-5)
            else:
                assert more[0] < 1.5 * losses[0]


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("case", ["top-k with feedback", "auto", "block_admm"])
def test_a_resuming_rank_reads_each_file_once(tmp_path, data, case, ranks, monkeypatch):
    """However many parts of a solver look into it: these looked 4, 8 and 10 times."""
    topk = ("exchange.name=auto", "exchange.codec.name=topk")
    job = job_of(tmp_path, data, CASES[case][0] if case in CASES else (*SGD, *topk))

    def save(transport):
        session = Session(transport, job)
        session.train(0, STEPS)
        saver = Saver(session.world, Checkpoints(tmp_path, 1), False, 0, clock=PhaseClock())
        saver.save(Position(step=STEPS, ranks=2, job=job.as_dict()), session.solver)
        saver.finish()

    run_ranks(2, save)
    reads: Counter[tuple[int, str]] = Counter()
    read_tree = checkpoint.read_tree

    def counted(path, part="/"):
        reads[threading.get_ident(), path.name] += 1
        return read_tree(path, part)

    monkeypatch.setattr(checkpoint, "read_tree", counted)

    def go_on(transport):
        session = Session(transport, job)
        restore(session.world, Checkpoints(tmp_path, 1), session.solver, job.as_dict(), lambda text: None)

    run_ranks(ranks, go_on)
    assert {name for _, name in reads} == {"shared.h5", "rank00000.h5", "rank00001.h5"}
    assert set(reads.values()) == {1}
