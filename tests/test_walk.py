"""From a job file to the solver that it names a reader passes six files, and never climbs back.

Counted are the files of hpcopt that have a function on the stack at the two places where the solver comes about: where
its name becomes a class, while the job is read, and where that class builds it. The list of names in families.py is
looked up and calls nothing.
"""

import traceback
from pathlib import Path

import pytest

import hpcopt
from hpcopt.families import SOLVERS
from hpcopt.family import Family
from hpcopt.shapes import SolverConfig
from hpcopt.train import parser, run
from hpcopt.trainer.ending import Ending
from hpcopt.trainer.signals import StopSignals
from tests.test_import_rule import FLOOR

PACKAGE = Path(hpcopt.__file__).parent
MOST_FILES = 6


class FarEnoughError(Exception):
    """The solver would be built now."""


def passed() -> list[str]:
    """Files of hpcopt on the stack, from the command on: "training.py", "solvers/gossip.py"."""
    files = [Path(frame.filename) for frame in traceback.extract_stack()]
    ours = [str(file.relative_to(PACKAGE)) for file in files if file.is_relative_to(PACKAGE)]
    return [file for file, before in zip(ours, [None, *ours], strict=False) if file != before]


@pytest.fixture
def data(digits) -> Path:
    return digits / "digits"


@pytest.mark.parametrize("name", ["data_parallel", "kaisa", "gossip", "block_admm", "altmin"])
def test_the_walk_is_short_and_goes_down(name, data, tmp_path, monkeypatch):
    walks, find, found = [], Family.find, SOLVERS.choices(SolverConfig)[name]

    def watched(self, asked):
        if self is SOLVERS:
            walks.append(passed())
        return find(self, asked)

    def build(self, task, context):
        walks.append([*passed(), f"{self.__module__.removeprefix('hpcopt.').replace('.', '/')}.py"])
        raise FarEnoughError

    monkeypatch.setattr(Family, "find", watched)
    monkeypatch.setattr(found, "build", build)
    settings = [f"--set=workload.data={data}", f"--set=solver.name={name}", "--set=run.device=cpu"]
    options = parser().parse_args(["--run-dir", str(tmp_path / "run"), *settings])
    with StopSignals() as signals, pytest.raises(FarEnoughError):
        run(options, signals, Ending(alone=True))
    for files in walks:
        floors = [FLOOR[file.split("/")[0].removesuffix(".py")] for file in files]
        assert floors == sorted(set(floors)), f"climbs back: {' '.join(files)}"
    every = {file for files in walks for file in files}
    assert len(every) <= MOST_FILES and {"train.py", "family.py"} < every, sorted(every)
