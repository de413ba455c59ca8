"""What a run took to a score: up to the first evaluation that had it, whichever way is better."""

import csv
import io
import json
import math

import pytest

from hpcopt.report.__main__ import main
from hpcopt.report.read import read_run
from hpcopt.report.summary import summarise
from hpcopt.report.target import Target, reached
from tests.report.conftest import CONFIG, make_run


@pytest.fixture
def run_dir(tmp_path):
    file = make_run(tmp_path / "known")
    for step, bits in ((10, 1.9), (20, 0.7), (30, 0.5), (40, 0.8)):
        scores = {"bits_per_char": bits, "accuracy": 1 - bits / 2}
        file.append_evaluation(step, step / 10, scores, {"bits_per_char": "lower", "accuracy": "higher"})
    return tmp_path / "known"


@pytest.mark.parametrize(
    ("score", "value", "step"),
    [("bits_per_char", 0.7, 20), ("bits_per_char", 0.6, 30), ("accuracy", 0.65, 20), ("accuracy", 0.0, 10)],
)
def test_the_first_evaluation_that_has_it_counts(run_dir, score, value, step):
    found = reached(read_run(run_dir), Target(score, value))
    assert (found.step, found.time_s, found.sent_bytes) == (step, step / 10, 300 * step)


@pytest.mark.parametrize(("score", "value"), [("bits_per_char", 0.4), ("accuracy", 0.9), ("speed", 1.0)])
def test_what_was_not_reached_is_no_number(run_dir, score, value):
    found = reached(read_run(run_dir), Target(score, value))
    assert all(map(math.isnan, (found.step, found.time_s, found.sent_bytes)))


def test_it_is_told_everywhere(run_dir, tmp_path, capsys):
    make_run(tmp_path / "other", lr=0.3)
    assert main([str(run_dir), "--target", "bits_per_char=0.6"]) == 0
    assert "bits_per_char=0.6 at step 30, 3 s, 9 kB sent by all ranks" in capsys.readouterr().out
    both = [str(run_dir), str(tmp_path / "other"), "--target", "bits_per_char=0.6"]
    assert main([*both, "--columns", "steps to it,time to it,sent to it"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[1][:6] == ["known", "30", "3", "s", "9", "kB"]
    assert rows[2][:4] == ["other", "-", "-", "-"]
    assert main([*both, "--csv"]) == 0
    known, other = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (known["to_target_time_s"], known["to_target_sent_bytes"], other["to_target_step"]) == (
        "3.0",
        "9000.0",
        "nan",
    )
    with pytest.raises(SystemExit, match="2"):
        main([str(run_dir), "--target", "fast"])


def test_a_jobs_own_target_is_the_default(tmp_path):
    stop_at = {"metric": "bits_per_char", "value": 0.6}
    config = {**CONFIG, "run": {"name": "known", "stop_at": stop_at}}
    make_run(tmp_path / "r", config=json.dumps(config))
    assert summarise(read_run(tmp_path / "r")).to_target["target"] == "bits_per_char=0.6"
