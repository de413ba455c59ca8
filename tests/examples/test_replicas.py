"""The examples of a replicator run as they stand, on one rank and on three, for a few steps."""

import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from mpi4py import MPI

from hpcopt.store.shards import write_shards
from tests.launching import ROOT


@pytest.fixture
def data(shared_tmp_path) -> Path:
    """Images of Fashion-MNIST's form: each class is bright in one place."""
    draw = np.random.default_rng(0)
    for split, rows in (("train", 600), ("test", 50)):
        labels = draw.integers(10, size=rows)
        images = draw.integers(100, size=(rows, 1, 28, 28)).astype(np.uint8)
        images[np.arange(rows), 0, 2 * labels] = 255
        arrays = {"images": images, "labels": labels}
        if MPI.COMM_WORLD.rank == 0:
            write_shards(shared_tmp_path, split, arrays, rows_per_shard=1000, attributes={"scale": 1 / 255})
    MPI.COMM_WORLD.barrier()
    return shared_tmp_path


@pytest.fixture
def run(data, monkeypatch, capsys):
    """Gives what rank 0 printed."""

    def run(example: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [example, "--data", str(data), *arguments])
        runpy.run_path(str(ROOT / "examples" / example), run_name="__main__")
        return MPI.COMM_WORLD.bcast(capsys.readouterr().out)

    return run


def results(said: str) -> tuple[int, float, float]:
    """Steps, last loss, accuracy."""
    steps, loss, accuracy = re.match(r"(\d+) steps, last loss (\S+), test accuracy (\S+)\n", said).groups()
    return int(steps), float(loss), float(accuracy)


@pytest.mark.parallel([1, 3])
def test_replicas(run):
    steps, loss, accuracy = results(run("replicas.py", "--batch", "60", "--images", "3600"))
    assert steps == 60 and accuracy == 1 and loss == pytest.approx(0.1245, abs=2e-4)  # whatever the number of ranks


@pytest.mark.parallel(3)
def test_replicas_in_groups_of_their_own_pace(run):
    said = run("replicas.py", "--batch", "60", "--images", "3600", "--sync-groups", "2")
    steps, _, accuracy = results(said)
    assert steps == 30 and accuracy > 0.9 and "staleness: {" in said


@pytest.mark.parallel([1, 3])
def test_sn_gan(run):
    said = run("sn_gan.py", "--images", "960")
    turns, off = re.fullmatch(r"(\d+) turns, .* spectral norms within (\S+) of 1 at every turn\n", said).groups()
    assert turns == "8" and float(off) < 0.05


@pytest.mark.parallel([1, 2, 3, 4])
def test_two_ranks(monkeypatch, capsys):
    """The same losses whether a replica is one rank or two, and with one, two or three replicas."""
    monkeypatch.setattr(sys, "argv", ["two_ranks.py", "--steps", "12"])
    runpy.run_path(str(ROOT / "examples" / "two_ranks.py"), run_name="__main__")
    steps, loss, accuracy = results(MPI.COMM_WORLD.bcast(capsys.readouterr().out))
    assert steps == 12 and accuracy > 0.5 and loss == pytest.approx(2.0665, abs=2e-4)
