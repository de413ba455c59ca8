"""Jobs: their metrics have the histogram, they resume from a cut, and a lost rank ends the others."""

import argparse
import threading
from unittest import mock

import h5py
import numpy as np
import pytest
import torch

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World
from hpcopt.dataflow.transform import Transform
from hpcopt.errors import EXIT_PEER, PeerError
from hpcopt.job import read_job
from hpcopt.solvers.amp.solver import AmpConfig
from hpcopt.store.checkpoint import Checkpoints
from hpcopt.trainer.signals import StopSignals
from hpcopt.training import train
from hpcopt.workloads.instances import InstanceWorkload
from tests.solvers.amp.problem import LISTS, batches, made

STEPS = 6
JOB = """
run = {name = "t", steps = 6, evaluate_every = 3}
workload = {name = "list_reduction", train = 40, test = 8, batch = 5, hidden = 6}
solver = {name = "amp", optimizer = {name = "adamw", lr = 1e-2}}
"""
LOCK, BUILD = threading.Lock(), InstanceWorkload.__init__


class Deaf(StopSignals):
    """Threads cannot listen."""

    def listen_for(self, name: str) -> None:
        pass


def in_turn(*arguments):
    """The threads draw networks from one generator."""
    with LOCK:
        BUILD(*arguments)


def run(folder, name, *settings):
    """What the training command does, on two threads; gives the last parameters and all losses."""
    job = read_job(folder / "job.toml", list(settings))
    options = argparse.Namespace(run_dir=folder / name, fresh=False, resume=(folder / name).exists())
    with mock.patch.object(InstanceWorkload, "__init__", in_turn):
        codes = run_ranks(2, lambda transport: train(job, World(transport), options, Deaf()))
    assert codes == [0, 0]
    steps = job.run.steps
    model = Checkpoints(folder / name / "checkpoints", keep=2).read_part(steps, "shared")["solver"]["model"]
    with h5py.File(folder / name / "metrics.h5") as file:
        losses, table = file["steps/loss"][:], {key: file[f"staleness/{key}"][:] for key in ("staleness", "messages")}
        assert file["steps/in_flight"][:].max() == job.solver.max_active_keys
        assert file["steps/messages"][:].min() > 0 and len(file["steps/longest_queue"]) == steps
    return torch.cat([p.reshape(-1) for p in model.values()]), losses, table


def test_a_run_with_one_in_flight_resumes_to_the_bit(tmp_path):
    (tmp_path / "job.toml").write_text(JOB)
    straight, losses, table = run(tmp_path, "straight", "solver.max_active_keys=1")
    assert set(table["staleness"]) == {0} and np.isfinite(losses).all()
    run(tmp_path, "cut", "solver.max_active_keys=1", "run.steps=3")
    again, more, _ = run(tmp_path, "cut", "solver.max_active_keys=1")
    assert torch.equal(again, straight) and np.array_equal(more, losses)


def test_a_run_with_many_in_flight_resumes_from_a_consistent_cut(tmp_path):
    (tmp_path / "job.toml").write_text(JOB)
    run(tmp_path, "cut", "solver.max_active_keys=4", "run.steps=3")
    parameters, losses, table = run(tmp_path, "cut", "solver.max_active_keys=4")
    assert parameters.isfinite().all() and np.isfinite(losses[1:]).all()
    assert table["staleness"].max() > 0 and (table["messages"] > 0).all()


def test_a_rank_whose_node_fails_ends_the_others(monkeypatch):
    class BrokenError(Exception):
        pass

    forward, told = Transform.forward, []

    def failing(self, port, message):
        if self.name == "cell" and message.state.instance == 7:
            raise BrokenError
        return forward(self, port, message)

    def program(transport):
        solver = made(AmpConfig(place={"cell": 1}), LISTS, World(transport))
        try:
            for batch in batches(LISTS):
                solver.step(batch)
        except PeerError as error:
            told.append(error.exit_code)
            raise

    monkeypatch.setattr(Transform, "forward", failing)
    with pytest.raises(BrokenError):
        run_ranks(3, program)
    assert told == [EXIT_PEER] * 2
