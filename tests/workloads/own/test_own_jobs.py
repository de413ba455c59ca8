"""Jobs of one's own, by the command: what goes wrong on one rank ends all with a sentence; streams train and go on."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.launching import ROOT, mpirun

JOB = """
[run]
name = "own"
steps = 12
checkpoint_every = 5
[workload]
name = "torch"
network = "mine:Net"
train = "mine:Table"
test = "mine:Table"
batch = 8
[solver.optimizer]
name = "sgd"
lr = 0.1
"""


def train(folder: Path, ranks: int, run: str, *settings: str):
    (folder / "job.toml").write_text(JOB)
    changes = [part for setting in settings for part in ("--set", setting)]
    arguments = [str(folder / "job.toml"), "--run-dir", str(folder / run), *changes]
    return mpirun(ranks, "-m", "hpcopt.train", *arguments, PYTHONPATH=f"{Path(__file__).parent}:{ROOT}")


def losses(run: Path) -> np.ndarray:
    with h5py.File(run / "metrics.h5") as file:
        return file["steps/loss"][:]


def test_a_sample_that_raises_on_one_rank_ends_all(tmp_path):
    bad = "workload.train_arguments={kind='raises', bad=39}"  # in the last stratum: rank 1's
    done = train(tmp_path, 2, "run", bad)
    assert done.returncode == 2
    assert "error on rank 1" in done.stderr and "sample 39 raised OSError: the disk is on fire" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


def test_a_score_that_is_no_number_is_a_warning(tmp_path):
    done = train(tmp_path, 2, "run", 'workload.scores=["mine:NotANumber"]')
    assert done.returncode == 0, done.stderr
    assert "warning: test_nothing is not finite" in done.stdout


@pytest.mark.parametrize("stream", ["mine:Numbers", "mine:Resumable"])
def test_streams_train_alike_and_go_on(tmp_path, stream):
    data = f"workload.train={stream}"
    assert train(tmp_path, 1, "one", data).returncode == 0
    done = train(tmp_path, 2, "cut", data, "run.steps=7")
    assert done.returncode == 0, done.stderr
    assert train(tmp_path, 2, "two", data).returncode == 0
    assert train(tmp_path, 2, "cut", data).returncode == 0
    np.testing.assert_array_equal(losses(tmp_path / "cut"), losses(tmp_path / "two"))
    np.testing.assert_allclose(losses(tmp_path / "one"), losses(tmp_path / "two"), rtol=1e-4)


def test_epochs_of_a_stream_are_refused(tmp_path):
    done = train(tmp_path, 2, "run", "workload.train=mine:Numbers", "run.epochs=3")
    assert done.returncode == 2 and "nobody knows how long a pass" in done.stderr
    assert done.stderr.count("nobody knows") == 1
