"""The figures as data."""

import csv
import io
import json

from hpcopt.report.__main__ import main
from tests.report.conftest import make_run


def test_json_is_strict_and_complete(run_dir, tmp_path, capsys):
    make_run(tmp_path / "empty", steps=0)
    assert main([str(run_dir), str(tmp_path / "empty"), "--json"]) == 0
    known, empty = json.loads(capsys.readouterr().out, parse_constant=lambda name: 1 / 0)
    assert known["scores"]["test_accuracy"] == 0.75
    assert known["job"]["solver"]["lr"] == 0.1
    assert empty["step_s"] is None


def test_csv_has_a_row_a_run(run_dir, tmp_path):
    make_run(tmp_path / "other", lr=0.3)
    assert main([str(run_dir), str(tmp_path / "other"), "--csv", str(tmp_path / "out.csv")]) == 0
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text())))
    assert [row["solver.lr"] for row in rows] == ["0.1", "0.3"]
    assert [row["test_accuracy"] for row in rows] == ["0.75", ""]
    assert float(rows[0]["exchange_s"]) > 0


def test_errors(tmp_path, run_dir, capsys):
    assert main([str(tmp_path / "nothing")]) == 2
    assert "missing" in capsys.readouterr().err
    assert main([str(run_dir), "--csv", str(tmp_path / "no" / "folder.csv")]) == 2
    assert "cannot write" in capsys.readouterr().err
