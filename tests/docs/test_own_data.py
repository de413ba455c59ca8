"""The example of the page about one's own network and data: it trains alike on one rank and on two, and goes on in the
middle of an epoch with the same bits.
"""

import re
import shutil
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from mpi4py import MPI

from hpcopt.train import main
from tests.docs.pieces import DOCS
from tests.serial import serial_losses


@pytest.fixture
def folder(shared_tmp_path, monkeypatch) -> Path:
    page = (DOCS / "howto" / "own_data.md").read_text()
    if MPI.COMM_WORLD.rank == 0:
        for name in ("my_net.py", "my_data.py", "my.toml"):
            (code,) = re.findall(rf"`{name}`:\n\n```\w+\n(.*?)```", page, re.DOTALL)
            (shared_tmp_path / name).write_text(code)
    MPI.COMM_WORLD.barrier()
    monkeypatch.syspath_prepend(shared_tmp_path)
    yield shared_tmp_path
    for module in ("my_net", "my_data"):
        sys.modules.pop(module, None)


def train(folder: Path, run: str, *settings: str) -> np.ndarray:
    """Losses of a run on these ranks."""
    changes = [f"--set={setting}" for setting in ("run.checkpoint_every=5", *settings)]
    assert main([str(folder / "my.toml"), "--run-dir", str(folder / run), *changes]) == 0
    with h5py.File(folder / run / "metrics.h5") as file:
        return file["steps/loss"][:]


@pytest.mark.parallel(2)
def test_the_example(folder):
    losses = train(folder, "whole")
    assert len(losses) == 60 and losses[-1] < losses[0] / 2
    np.testing.assert_allclose(losses, serial_losses(folder / "my.toml", 60), rtol=1e-4)
    train(folder, "cut", "run.steps=17")
    if MPI.COMM_WORLD.rank == 0:
        checkpoints = sorted((folder / "cut" / "checkpoints").iterdir())
        shutil.rmtree(next(c for c in checkpoints if "17" in c.name))  # as if killed before: an epoch has 12 steps
    MPI.COMM_WORLD.barrier()
    np.testing.assert_array_equal(train(folder, "cut"), losses)
