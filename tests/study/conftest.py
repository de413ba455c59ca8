"""Studies in a folder of the test's own, whose functions stand in points.py."""

from pathlib import Path

import pytest

from hpcopt.study import Study


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def study_of(here):
    """Makes a study of n = 0 ... and seeds; ``log`` gets a line for each call."""

    def make(function: str, n: int = 7, seeds: int = 0, **base) -> Study:
        base = {"log": str(here / "log"), **base}
        return Study("numbers", [{"n": list(range(n))}], tuple(range(seeds)), base, f"points:{function}")

    return make


@pytest.fixture
def calls(here):
    """Lines of the log so far."""
    return lambda: (here / "log").read_text(encoding="utf-8").splitlines() if (here / "log").exists() else []
