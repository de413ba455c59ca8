"""The example of the page about one's own network and data: it trains alike on one rank and on two, and goes on in the
middle of an epoch with the same bits.
"""

import re
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.launching import ROOT, mpirun

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "own_data.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    page = PAGE.read_text()
    for name in ("my_net.py", "my_data.py", "my.toml"):
        (code,) = re.findall(rf"`{name}`:\n\n```\w+\n(.*?)```", page, re.DOTALL)
        (folder / name).write_text(code)
    return folder


def train(folder: Path, ranks: int, run: str, *settings: str) -> np.ndarray:
    """Losses of a run."""
    changes = [part for setting in ("run.checkpoint_every=5", *settings) for part in ("--set", setting)]
    arguments = [str(folder / "my.toml"), "--run-dir", str(folder / run), *changes]
    done = mpirun(ranks, "-m", "hpcopt.train", *arguments, PYTHONPATH=f"{folder}:{ROOT}")
    assert done.returncode == 0, done.stderr + done.stdout
    with h5py.File(folder / run / "metrics.h5") as file:
        return file["steps/loss"][:]


def test_the_example(folder):
    one, two = (train(folder, ranks, f"on-{ranks}") for ranks in (1, 2))
    assert len(one) == 60 and one[-1] < one[0] / 2
    np.testing.assert_allclose(one, two, rtol=1e-4)
    train(folder, 2, "cut", "run.steps=17")
    checkpoints = sorted((folder / "cut" / "checkpoints").iterdir())
    shutil.rmtree(next(c for c in checkpoints if "17" in c.name))  # as if killed before: an epoch has 12 steps
    np.testing.assert_array_equal(train(folder, 2, "cut"), two)
