"""The examples of loops of one's own run, on one rank and on three."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from hpcopt.report.read import read_run

EXAMPLES = Path(__file__).parents[1] / "examples"
RUNS = {
    "classifier": ["classifier.py"],
    "4bit": ["compressed.py", "--by", "4bit"],
    "vote": ["compressed.py", "--by", "vote"],
    "kfac": ["compressed.py", "--by", "kfac"],
    "char_model": ["char_model.py"],
}


@pytest.mark.parallel([1, 3])
@pytest.mark.parametrize("name", RUNS)
def test_an_example_runs(shared_tmp_path, monkeypatch, name):
    file, *options = RUNS[name]
    monkeypatch.setattr(sys, "argv", [file, *options, "--steps", "3", "--run-dir", str(shared_tmp_path / "run")])
    runpy.run_path(str(EXAMPLES / file), run_name="__main__")
    run = read_run(shared_tmp_path / "run")
    assert (run.steps, run.attributes["exit_code"]) == (3, 0)
    assert np.isfinite(run.columns["loss"]).all()
    assert run.ranks == 1 or (run.sent_bytes > 0).all()
