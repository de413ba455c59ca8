"""What a run left behind, opened from Python, is what it trained."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import hpcopt
from hpcopt.comm.world import alone
from hpcopt.errors import CheckpointError, JobError, MetricsError
from hpcopt.runs import open_run
from hpcopt.store.checkpoint import SHARED
from hpcopt.store.weights import newest_weights
from hpcopt.train import main
from hpcopt.trainer.loop import evaluate

JOB = """
[run]
name = "t"
steps = 6
evaluate_every = 3
checkpoint_every = 3
[workload]
data = "DATA/digits"
batch = 64
[workload.model]
name = "mlp"
hidden = [8]
"""


@pytest.fixture(scope="module")
def done(digits, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("done")
    (folder / "job.toml").write_text(JOB.replace("DATA", str(digits)))
    assert main([str(folder / "job.toml"), "--run-dir", str(folder / "run")]) == 0
    return folder / "run"


@pytest.fixture
def path(done, tmp_path) -> Path:
    return shutil.copytree(done, tmp_path / "run")


def test_the_model_has_the_scores_that_the_run_ended_with(path):
    run = hpcopt.open_run(str(path))
    assert run.job.run.steps == 6
    assert not run.model.training
    scores = evaluate(alone(), run.workload, run.model)
    for name, value in scores.items():
        assert run.metrics("evaluations")[name][-1] == pytest.approx(value)
    assert run.checkpoints.steps() == [6, 3]


def test_metrics_are_columns(path):
    run = open_run(path)
    np.testing.assert_array_equal(run.metrics()["step"], np.arange(1, 7))
    assert run.metrics()["phase_s"].shape[:2] == (6, 1)
    assert run.metrics("choices") == {}


def test_the_workloads_model_is_the_first(path):
    run = open_run(path)
    before = [p.clone() for p in run.workload.model.parameters()]
    assert any(not torch.equal(a, b) for a, b in zip(before, run.model.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, run.workload.model.parameters(), strict=True))


def test_a_damaged_newest_checkpoint_is_passed_over(path):
    run = open_run(path)
    part, _ = run.checkpoints.place(6, SHARED)
    part.write_bytes(part.read_bytes()[:-100])
    expected = run.checkpoints.read_part(3, SHARED)["solver"]["model"]
    assert newest_weights(path).step == 3
    assert all(torch.equal(run.model.state_dict()[name], tensor) for name, tensor in expected.items())


def test_what_is_not_there_is_one_error(path, tmp_path):
    with pytest.raises(JobError, match=r"no job\.toml"):
        open_run(tmp_path)
    shutil.rmtree(path / "checkpoints")
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        _ = open_run(path).model
    (path / "metrics.h5").unlink()
    with pytest.raises(MetricsError, match="missing"):
        open_run(path).metrics()


def test_a_checkpoint_of_another_network(path):
    text = (path / "job.toml").read_text()
    (path / "job.toml").write_text(text.replace("hidden = [\n    8,\n]", "hidden = [9]"))
    with pytest.raises(CheckpointError, match="holds another network"):
        _ = open_run(path).model


@pytest.mark.parametrize("tree", [3, {"solver": 1}, {"solver": {"model": {"w": 3}}}, {"weights": torch.zeros(2)}])
def test_a_checkpoint_of_another_program(path, tree):
    run = open_run(path)
    shutil.rmtree(path / "checkpoints")
    run.checkpoints.begin(9)
    run.checkpoints.write_part(9, SHARED, tree)
    run.checkpoints.commit(9, [SHARED])
    with pytest.raises(CheckpointError, match="is not a checkpoint of a job"):
        newest_weights(path)
