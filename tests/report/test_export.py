"""The figures as data."""

import csv
import io
import json
from dataclasses import asdict

from hpcopt.report.__main__ import main
from hpcopt.report.prediction import predict
from tests.report.conftest import make_run
from tests.report.test_prediction import TARGETS, sweep


def test_json_is_strict_and_complete(run_dir, tmp_path, capsys):
    make_run(tmp_path / "empty", steps=0)
    assert main([str(run_dir), str(tmp_path / "empty"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=lambda name: 1 / 0)
    known, empty = found["runs"]
    assert found["prediction"] is None
    assert known["scores"]["test_accuracy"] == 0.75
    assert known["job"]["solver"]["lr"] == 0.1
    assert empty["step_s"] is None


def test_csv_has_a_row_a_run(run_dir, tmp_path):
    make_run(tmp_path / "other", lr=0.3)
    assert main([str(run_dir), str(tmp_path / "other"), "--csv", str(tmp_path / "out.csv")]) == 0
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text())))
    assert [row["solver.lr"] for row in rows] == ["0.1", "0.3"]
    assert [row["test_accuracy"] for row in rows] == ["0.75", ""]
    assert [row["run"] for row in rows] == ["known", "other"]  # as on the page; both jobs are called "known"
    assert [row["name"] for row in rows] == ["known", "known"]
    assert float(rows[0]["exchange_s"]) > 0


def test_the_prediction_is_exported(tmp_path):
    runs = sweep(tmp_path, sizes=(1, 2, 4), repeats=2, noise=0.01)
    prediction = predict(runs, TARGETS)
    paths = [str(summary.path) for _, summary in runs]
    paths += ["--predict", "128,1024,8192"]
    assert main([*paths, "--json", str(tmp_path / "out.json"), "--csv", str(tmp_path / "out.csv")]) == 0

    def refuse(constant):
        raise ValueError(constant)

    told = json.loads((tmp_path / "out.json").read_text(), parse_constant=refuse)
    assert len(told["runs"]) == len(runs)
    found = told["prediction"]
    assert found["latency"] == asdict(prediction.latency)
    assert [(h["series"], h["ranks"], h["error"]) for h in found["held_out"]] == [
        (h.series, h.ranks, h.error) for h in prediction.held_out
    ]
    assert [row["fastest"] for row in found["rows"]] == [row.fastest for row in prediction.rows]
    assert found["rows"][3]["steps"]["vote"] == asdict(prediction.rows[3].steps["vote"])

    rows = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text())))
    assert [row["ranks"] for row in rows] == [str(run.ranks) for run, _ in runs]  # what was measured, and nothing else


def test_errors(tmp_path, run_dir, capsys):
    assert main([str(tmp_path / "nothing")]) == 2
    assert "missing" in capsys.readouterr().err
    assert main([str(run_dir), "--csv", str(tmp_path / "no" / "folder.csv")]) == 2
    assert "cannot write" in capsys.readouterr().err
