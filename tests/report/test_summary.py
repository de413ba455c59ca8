"""The figures of a known run."""

import json
import os

import numpy as np
import pytest

from hpcopt.report.read import read_run
from hpcopt.report.summary import differing_settings, summarise
from hpcopt.store.metrics import MetricsFile
from tests.report.conftest import append, make_run


def test_figures(run_dir):
    summary = summarise(read_run(run_dir))
    assert (summary.state, summary.outcome) == ("finished", "all steps done")
    assert (summary.steps, summary.epoch, summary.elapsed_s) == (40, 2.0, 4.0)
    assert summary.hosts == ("n1", "n2")
    assert summary.scores == {"test_accuracy": 0.75, "test_loss": 0.25}
    assert summary.step_s == pytest.approx(0.012)
    assert summary.samples_per_s == pytest.approx(30 / 0.012)
    assert (summary.sent_bytes, summary.dense_bytes) == (300, 1200)
    assert summary.beside == {"checkpoint": pytest.approx(0.5)}
    seconds = {name: s for name, (s, _) in summary.phases.items()}
    mean_forward = (0.004 * 2 + 0.006) / 3
    expected = {"data": 0.001, "forward": mean_forward, "exchange": 0.005, "other": 0.012 - 0.006 - mean_forward}
    assert seconds == pytest.approx(expected)
    assert sum(share for _, share in summary.phases.values()) == pytest.approx(1)


def test_states(tmp_path):
    file = make_run(tmp_path / "r")
    assert summarise(read_run(tmp_path / "r")).state == "running"
    os.utime(file.path, (0, 0))
    assert summarise(read_run(tmp_path / "r")).state == "interrupted"
    file.finish("told to stop by a signal", 85)
    assert summarise(read_run(tmp_path / "r")).state == "stopped"
    file.restart(40, 3, {})
    append(file, 40, 5, 3)
    summary = summarise(read_run(tmp_path / "r"))
    assert (summary.state, summary.restarts) == ("running", 1)


def test_settings_that_differ(tmp_path):
    make_run(tmp_path / "a", lr=0.1)
    make_run(tmp_path / "b", lr=0.2, ranks=5)
    runs = [read_run(tmp_path / name) for name in "ab"]
    assert differing_settings(runs) == {"ranks": ["3", "5"], "solver.lr": ["0.1", "0.2"]}


def test_runs_of_one_name_show_all_settings_that_differ(tmp_path):
    for name, lr in (("a", 0.1), ("b", 0.2)):
        job = {"run": {"name": "same", "seed": lr}, "solver": {"lr": lr, "momentum": 4 * lr, "clip_norm": lr}}
        make_run(tmp_path / name, config=json.dumps(job))
    settings = differing_settings([read_run(tmp_path / name) for name in "ab"])
    assert set(settings) == {"run.seed", "solver.lr", "solver.momentum", "solver.clip_norm"}
    assert settings["solver.momentum"] == ["0.4", "0.8"]


def test_labels(tmp_path):
    make_run(tmp_path / "r", oversubscribed=True, config='{"run": {"backend": "loopback"}}')
    assert [label.split(":")[0] for label in summarise(read_run(tmp_path / "r")).labels] == [
        "oversubscribed",
        "loopback",
    ]


def test_without_steps_there_are_no_times(tmp_path):
    make_run(tmp_path / "r", steps=0)
    summary = summarise(read_run(tmp_path / "r"))
    assert summary.step_s != summary.step_s
    assert summary.phases == {}


def test_phases_add_up_to_the_step_and_what_passed_beside_them_is_told_apart(tmp_path):
    """An exchange in its thread: 4 ms forward and 5 ms backward hide 3 ms of coding and 5 ms of messages."""
    seconds = {"forward": 0.004, "backward": 0.005, "exchange": 0.001, "encode": 0.003, "comm": 0.005, "update": 0.001}
    file = MetricsFile(tmp_path / "metrics.h5")
    file.create(2, list(seconds), {"title": "overlapped"})
    step = np.arange(1, 41)
    phase_s = np.tile(list(seconds.values()), (40, 2, 1))
    sent = np.full((40, 2), 100)
    file.append_steps({"step": step, "step_s": np.full(40, 0.0125)}, phase_s, sent, sent)
    summary = summarise(read_run(tmp_path))
    assert sum(share for _, share in summary.phases.values()) == pytest.approx(1)
    assert summary.phases["other"][0] == pytest.approx(0.0015, rel=1e-4)
    assert summary.overlapped == {"encode": pytest.approx(0.003), "comm": pytest.approx(0.005)}
