"""The comparison with other libraries: its lines are counted, ours are the fewest, and the scripts run."""

import os
import re
import runpy
import sys

import pytest

from tests.launching import ROOT, mpirun

FOLDER = ROOT / "examples/compare"


def test_the_table_is_what_the_script_counts():
    counted = runpy.run_path(str(FOLDER / "count.py"))["table"]()
    page = (ROOT / "docs/howto/coming_from.md").read_text()
    assert page.split("<!-- begin lines -->\n")[1].split("\n<!-- end lines -->")[0] == counted
    ours, *others = [int(found) for found in re.findall(r"\| (\d+) \| \d+ \|", counted)]
    assert len(others) == 3 and ours < min(others)


@pytest.fixture
def alone(monkeypatch):
    """What torchrun says to one rank."""
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("script", ["ours", "ddp"])
def test_the_scripts_reach_the_same_accuracy(script, alone, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr(sys, "argv", [f"{script}.py", str(tmp_path / "run")])
    runpy.run_path(str(FOLDER / f"{script}.py"), run_name="__main__")
    assert accuracy(capsys.readouterr().out) > 0.9


def test_the_script_of_horovod_reaches_it_too(tmp_path):
    """In a process of its own: Horovod would stay in this one."""
    pytest.importorskip("horovod.torch")
    path = os.pathsep.join([str(ROOT), str(FOLDER)])
    done = mpirun(1, str(FOLDER / "with_horovod.py"), str(tmp_path / "run"), PYTHONPATH=path)
    assert done.returncode == 0, done.stderr + done.stdout
    assert accuracy(done.stdout) > 0.9


def accuracy(said: str) -> float:
    return float(re.findall(r"accuracy[ =]([\d.]+)", said)[-1])
