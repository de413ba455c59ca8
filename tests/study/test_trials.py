"""What a point gives: of a function its numbers, of a job what its run measured."""

from pathlib import Path

import numpy as np
import pytest

from hpcopt.comm.world import alone
from hpcopt.report import read_run
from hpcopt.study import Study, run_study
from hpcopt.study.trials import kept
from hpcopt.train import main as train
from hpcopt.trainer.signals import StopSignals

JOB = {
    "run": {"epochs": 1, "evaluate_every": 4, "device": "cpu"},
    "workload": {"name": "image_classification", "batch": 128, "model": {"name": "mlp", "hidden": [8]}},
    "solver": {"name": "data_parallel", "optimizer": {"name": "sgd", "lr": 0.1}},
}


@pytest.fixture
def job(digits):
    return {**JOB, "workload": {**JOB["workload"], "data": f"{digits}/digits"}}


def test_a_jobs_results_are_those_of_the_same_run_by_itself(here, job, capfd):
    keep = ("loss", "test_accuracy", "best_test_accuracy", "steps", "learning_rate")
    study = Study("s", [{"solver.optimizer.lr": [0.05, 0.2]}], (0, 3), job, keep=keep, keep_runs=True)
    table = run_study(study, "out")
    assert capfd.readouterr().out == ""
    assert set(table.status) == {"done"}, table.message
    study.path.with_suffix(".toml").write_text(study.job(study.points[3], []).as_toml(), encoding="utf-8")
    assert train(["study.toml", "--run-dir", "alone"]) == 0
    run = read_run(Path("alone/metrics.h5"))
    assert table.points[3] == {"solver.optimizer.lr": 0.2, "seed": 3}
    assert table.results["loss"][3] == run.columns["loss"][-1]
    assert table.results["learning_rate"][3] == run.columns["learning_rate"][-1]
    assert table.results["test_accuracy"][3] == run.evaluations["test_accuracy"][-1]
    assert table.results["best_test_accuracy"][3] == max(run.evaluations["test_accuracy"])
    assert table.results["steps"].tolist() == [11.0] * 4
    assert len(set(table.results["loss"])) == 4
    assert sorted(path.name for path in Path("out/runs").iterdir()) == ["000000", "000001", "000002", "000003"]


def test_a_job_that_is_stopped_goes_on_from_its_checkpoint(here, job):
    study = Study("s", [{"run.epochs": [2]}], (), job)
    with StopSignals() as signals:
        signals.received = "SIGUSR1"
        from hpcopt.study.folder import Folder
        from hpcopt.study.trials import JobTrial

        trial = JobTrial(study, Folder(Path("out")), alone(), signals)
        assert trial(0, study.points[0], again=False) is None  # it leaves with a checkpoint
        assert list(Path("out/runs/000000/checkpoints").iterdir())
        signals.received = None
        results = trial(0, study.points[0], again=False)
    assert results is not None and results["steps"] == 22
    assert not Path("out/runs/000000").exists()


def test_a_job_that_diverges_is_a_failed_point(here, job):
    table = run_study(Study("s", [{"solver.optimizer.lr": [0.1, 1e30]}], (), job), "out")
    assert table.status.tolist() == ["done", "failed"]
    assert table.message[1].startswith("the loss became nan at step 2")
    assert np.isnan(table.results["loss"][1])
    assert set(table.results) == {"loss", "steps", "test_loss", "test_accuracy"}


@pytest.mark.parametrize(
    ("found", "keep", "says"),
    [
        ([1.0], (), "gave list, not a dict"),
        ({"a": 1.0}, ("b",), "gave no b; it gave a"),
        ({}, ("b",), "it gave nothing"),
        ({"a": "text"}, (), "a is 'text', not a number"),
        ({"a": "3"}, (), "a is '3', not a number"),
        ({"a": None}, (), "not a number"),
        ({"a": 10**400}, (), "not a number"),
        ({"n": 1.0}, (), "cannot be called 'n'"),
        ({"status": 1.0}, (), "cannot be called 'status'"),
        ({"a/b": 1.0}, (), "cannot be called 'a/b'"),
        ({3: 1.0}, (), "cannot be called 3"),
        ({"a\0": 1.0}, (), "cannot be called"),
        ({"a\udcff": 1.0}, (), "cannot be called"),
    ],
)
def test_what_is_no_result_says_so(found, keep, says):
    with pytest.raises(ValueError, match=says):
        kept(found, keep, {"n": 3})


def test_what_is_kept():
    assert kept({"a": 1, "b": np.float32(0.5), "c": True}, (), {}) == {"a": 1.0, "b": 0.5, "c": 1.0}
    assert kept({"a": 1, "b": "text"}, ("a",), {}) == {"a": 1.0}


def test_a_function_of_nested_keys(here):
    study = Study("s", [{"c": [1, 2]}, {"a.b": [5]}], (), {"a": {"d": 3}}, "points:plain")
    assert run_study(study, "out").results["value"].tolist() == [15.0, 25.0]
