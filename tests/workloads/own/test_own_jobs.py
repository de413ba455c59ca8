"""Jobs of one's own, by the command: what goes wrong on one rank ends all with a sentence; streams train and go on."""

import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from hpcopt.train import main
from tests.launching import ROOT, mpirun
from tests.serial import serial_losses

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


@pytest.fixture(autouse=True)
def found(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    yield
    sys.modules.pop("mine", None)


def command(folder: Path, run: Path, *settings: str) -> list[str]:
    """Arguments of ``hpcopt train``, with a job file in this rank's folder."""
    (folder / "job.toml").write_text(JOB)
    return [str(folder / "job.toml"), "--run-dir", str(run), *(f"--set={setting}" for setting in settings)]


def losses(run: Path) -> np.ndarray:
    with h5py.File(run / "metrics.h5") as file:
        return file["steps/loss"][:]


def test_a_sample_that_raises_on_one_rank_ends_all(tmp_path):
    bad = "workload.train_arguments={kind='raises', bad=39}"  # in the last stratum: rank 1's
    path = f"{Path(__file__).parent}:{ROOT}"
    done = mpirun(2, "-m", "hpcopt.train", *command(tmp_path, tmp_path / "run", bad), PYTHONPATH=path)
    assert done.returncode == 2
    assert "error on rank 1" in done.stderr and "sample 39 raised OSError: the disk is on fire" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


def test_a_score_that_is_no_number_is_a_warning(tmp_path, capsys):
    assert main(command(tmp_path, tmp_path / "run", 'workload.scores=["mine:NotANumber"]')) == 0
    assert "warning: test_nothing is not finite" in capsys.readouterr().out


@pytest.mark.parallel(2)
@pytest.mark.parametrize("stream", ["mine:Numbers", "mine:Resumable"])
def test_streams_train_alike_and_go_on(tmp_path, shared_tmp_path, stream):
    data, cut, whole = f"workload.train={stream}", shared_tmp_path / "cut", shared_tmp_path / "whole"
    for run, *settings in ([cut, "run.steps=7"], [cut], [whole]):
        assert main(command(tmp_path, run, data, *settings)) == 0
    np.testing.assert_array_equal(losses(cut), losses(whole))
    np.testing.assert_allclose(losses(whole), serial_losses(tmp_path / "job.toml", 12, data), rtol=1e-4)


def test_epochs_of_a_stream_are_refused(tmp_path, capsys):
    assert main(command(tmp_path, tmp_path / "run", "workload.train=mine:Numbers", "run.epochs=3")) == 2
    assert "nobody knows how long a pass" in capsys.readouterr().err
