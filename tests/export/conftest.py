"""A run of which a part is exported, goes on after a requeue, and is exported again."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hpcopt.export.__main__ import main
from hpcopt.export.series import Series, series_of
from hpcopt.report.read import read_run
from tests.conftest import require
from tests.report.conftest import PHASES, append, make_run, run_dir  # noqa: F401


def need(library: str) -> None:
    require(library.split(".")[0], importlib.util.find_spec(library.split(".")[0]) is not None, f"no {library} here")


@pytest.fixture
def twice(tmp_path) -> Callable[[str], dict[str, Series]]:
    """Export a run while it goes on, at step 25, and after its end, at step 40; give its series."""

    def exported(kind: str, *more: str) -> dict[str, Series]:
        run = tmp_path / "known"
        file = make_run(run, steps=25)
        file.append_evaluation(20, 2.0, {"test_accuracy": 0.5})
        assert main([str(run), "--to", kind, *more]) == 0
        file.restart(25, 3, {}, phases=PHASES)
        append(file, 25, 15, 3)
        file.append_evaluation(25, 2.5, {"test_accuracy": 0.625})
        file.append_evaluation(40, 4.0, {"test_accuracy": 0.75})
        file.finish("all steps done", 0)
        assert main([str(run), "--to", kind, *more]) == 0
        return {series.name: series for series in series_of(read_run(run))}

    return exported


def same(found: dict[str, dict[int, float]], series: dict[str, Series]) -> None:
    """Whether what a library read, value by step by name, is what was measured, as float32 at least."""
    assert set(found) == set(series)
    for name, each in series.items():
        assert list(found[name]) == each.steps.tolist(), name
        assert np.allclose(list(found[name].values()), each.values, rtol=1e-7, atol=0), name


def files(folder: Path, pattern: str) -> list[Path]:
    return sorted(folder.rglob(pattern))
