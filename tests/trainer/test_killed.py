"""Four ranks of a process that is killed: as many go on with the same bits, and three or five from where it was."""

import argparse
import copy
import shutil
import time
from pathlib import Path
from unittest import mock

import h5py
import numpy as np
import pytest
import torch

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World
from hpcopt.job import read_job
from hpcopt.models.mlp import MlpConfig
from hpcopt.store.checkpoint import Checkpoints
from hpcopt.trainer.signals import StopSignals
from hpcopt.training import train
from tests.launching import PATIENCE_S, forking

STEPS, EVERY = 20, 10  # at the checkpoint that is gone on from, the fragments of local steps are under way
JOB = """
run = {{name = "t", steps = {steps}, checkpoint_every = {every}}}
workload = {{data = "{data}", batch = 64, model = {{name = "mlp", hidden = [32]}}}}
"""
SETTINGS = {
    "local": [
        'solver={name="local", every=8, fragments=2, delay=3, optimizer={name="sgd", lr=0.1}}',
        'exchange={name="two_phase", codec={name="chunked_topk", bucket=64, k=16}}',
    ],
    "gossip": ['solver={name="local", every=8, gossip={}, optimizer={name="sgd", lr=0.1}}'],
    "lgc": [
        'solver.optimizer={name="sgd", lr=0.1, momentum=0}',
        'exchange={name="lgc", fraction=0.02, dense_steps=5, learning_steps=4}',
    ],
    "leader": ['solver={name="leader", every=4, group=2, optimizer={name="sgd", lr=0.1}}'],
    "pipeline": ['solver={name="pipeline", optimizer={name="sgd", lr=0.1}}'],
    "local_parallel": ['solver={name="local_parallel", optimizer={name="sgd", lr=0.1}}'],
    "gist": ['solver={name="gist", every=3, optimizer={name="adamw", lr=0.01}}'],
}
NETWORKS_OVER_RANKS = {"pipeline", "local_parallel", "gist"}  # whose contract has them go on at other numbers of ranks


class Deaf(StopSignals):
    """Threads cannot listen."""

    def listen_for(self, name: str) -> None:
        pass


class AtItsEnd(Deaf):
    """Goes no further than a checkpoint: there it waits to be killed."""

    def __init__(self, checkpoint: Path) -> None:
        self._checkpoint = checkpoint

    @property
    def received(self) -> None:  # type: ignore[override]
        if self._checkpoint.exists():
            time.sleep(PATIENCE_S)


def run(folder: Path, setting: str, ranks: int, name: str, signals: StopSignals) -> None:
    """What the training command does, on threads."""
    job = read_job(folder / "job.toml", SETTINGS[setting])
    torch.manual_seed(0)
    network = job.workload.model.build((1, 8, 8), 10)  # here, where no thread seeds the generator that all share
    options = argparse.Namespace(run_dir=folder / name, fresh=False, resume=(folder / name).exists())
    with mock.patch.object(MlpConfig, "build", lambda *_: copy.deepcopy(network)):
        codes = run_ranks(ranks, lambda transport: train(job, World(transport), options, signals))
    assert codes == [0] * ranks


def end(run_dir: Path) -> tuple[np.ndarray, torch.Tensor, float]:
    """All losses, the parameters, and their accuracy."""
    with h5py.File(run_dir / "metrics.h5") as file:
        np.testing.assert_array_equal(file["steps/step"][:], np.arange(1, STEPS + 1))
        losses, accuracy = file["steps/loss"][:], file["evaluations/test_accuracy"][-1]
    model = Checkpoints(run_dir / "checkpoints", keep=2).read_part(STEPS, "shared")["solver"]["model"]
    return losses, torch.cat([p.reshape(-1) for p in model.values()]), accuracy


@pytest.mark.parametrize("setting", SETTINGS)
def test_ranks_are_killed_and_go_on(tmp_path, digits, setting):
    (tmp_path / "job.toml").write_text(JOB.format(steps=STEPS, every=EVERY, data=digits / "digits"))
    checkpoint = tmp_path / "4" / "checkpoints" / "latest"
    killed = forking().Process(target=run, args=(tmp_path, setting, 4, "4", AtItsEnd(checkpoint)), daemon=True)
    killed.start()
    patience = time.monotonic() + PATIENCE_S
    while not checkpoint.exists():
        assert killed.is_alive() and time.monotonic() < patience
        time.sleep(0.005)
    killed.kill()
    killed.join()
    assert killed.exitcode == -9
    others = () if setting in NETWORKS_OVER_RANKS else (3, 5)
    for ranks in others:
        shutil.copytree(tmp_path / "4", tmp_path / f"{ranks}")
    run(tmp_path, setting, 4, "straight", Deaf())
    losses, parameters, accuracy = end(tmp_path / "straight")
    for ranks in (4, *others):
        run(tmp_path, setting, ranks, f"{ranks}", Deaf())
        more, moved, again = end(tmp_path / f"{ranks}")
        assert torch.equal(moved, parameters) == np.array_equal(more, losses) == (ranks == 4)
        np.testing.assert_array_equal(more[:EVERY], losses[:EVERY])
        assert again > accuracy - 0.1
