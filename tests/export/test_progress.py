"""What is exported when, and where the next export goes on."""

from dataclasses import replace

import numpy as np
import pytest

from hpcopt.export.__main__ import main
from hpcopt.export.series import closed_step, moments, series_of
from hpcopt.report.read import Start, read_run
from tests.report.conftest import make_run


def test_the_last_step_of_a_run_under_way_waits_for_its_evaluation(tmp_path):
    file = make_run(tmp_path, steps=30)
    assert closed_step(read_run(tmp_path)) == 29
    file.finish("all steps done", 0)
    assert closed_step(read_run(tmp_path)) == 30


def test_a_run_without_steps_has_nothing_to_export(tmp_path, capsys):
    make_run(tmp_path, steps=0)
    assert main([str(tmp_path), "--to", "otlp"]) == 0
    assert "nothing is new" in capsys.readouterr().out
    assert not (tmp_path / "otlp.jsonl").exists()


def test_what_was_not_measured_has_no_point(tmp_path):
    file = make_run(tmp_path, steps=0)
    one = np.ones((2, 3), np.int64)
    file.append_steps(
        {"step": np.array([1, 2]), "time_s": np.ones(2), "loss": np.array([np.nan, 0.5])}, np.ones((2, 3, 4)), one, one
    )
    loss = next(series for series in series_of(read_run(tmp_path)) if series.name == "train/loss")
    assert (loss.steps.tolist(), loss.values.tolist()) == ([2], [0.5])


def test_the_wait_of_a_requeue_is_between_the_moments(tmp_path):
    make_run(tmp_path)
    run = read_run(tmp_path)
    later = Start(step=20, time_s=2.0, ranks=3, date="2100-01-01T00:00:00+00:00", reason="resumed")
    run = replace(run, starts=(*run.starts, later))
    steps, time_s = run.columns["step"], run.columns["time_s"]
    found = moments(run, steps, time_s)
    assert np.diff(found)[[0, 18, 20]] == pytest.approx(0.1, abs=1e-6)
    assert found[20] - found[19] > 1e8


@pytest.mark.parametrize("damage", ["{", "[]", '{"otlp": {}}'])
def test_a_damaged_note_is_one_sentence(tmp_path, damage, capsys):
    make_run(tmp_path)
    (tmp_path / "exports.json").write_text(damage)
    assert main([str(tmp_path), "--to", "otlp"]) == 2
    assert "remove it" in capsys.readouterr().err
