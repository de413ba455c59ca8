"""The table holds what it was given, kinds and all, and damage is one error."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from hpcopt.errors import DataError
from hpcopt.study import Study, read_study, run_study
from hpcopt.study.table import Row, empty, read_table, write_table

POINTS = [
    {"n": n, "rate": rate, "name": name, "solver": solver, "on": on}
    for n, rate, name, solver, on in [
        (1, 0.5, "a", {"name": "sgd"}, True),
        (2**53 + 1, 1, "ä/b", {"name": "kaisa", "damping": [1, 2]}, False),
        (-3, 1e-300, "", "off", True),
    ]
]


def test_points_and_results_come_back_as_they_were(tmp_path):
    table = empty({"title": "all kinds", "asked": "{}"})
    table.extend(POINTS)
    assert (
        table.fill([Row(1, "done", 0.25, {"error": 0.1 + 0.2, "steps": 7}), Row(2, "failed", 1.0, {}, "why: ü")]) == 2
    )
    table.fill([Row(1, "done", 9.0, {"error": 5.0}), Row(7, "done", 1.0, {}), Row(0, "done", 1.0, {"late": np.inf})])
    write_table(tmp_path / "t.h5", table)
    back = read_table(tmp_path / "t.h5")
    assert back.points == POINTS
    assert back.axes["n"].dtype == np.int64 and back.axes["rate"].dtype == np.float64
    assert back.status.tolist() == ["done", "done", "failed"]
    assert back.message.tolist() == ["", "", "why: ü"]
    assert np.array_equal(back.seconds, [1.0, 0.25, 1.0])
    wanted = {"error": [np.nan, 0.1 + 0.2, np.nan], "steps": [np.nan, 7, np.nan], "late": [np.inf, np.nan, np.nan]}
    assert back.results.keys() == wanted.keys()
    assert all(np.array_equal(back.results[name], values, equal_nan=True) for name, values in wanted.items())
    assert back.attributes == {"title": "all kinds", "asked": "{}"}


def test_a_column_of_whole_numbers_takes_others(tmp_path):
    table = empty({})
    table.extend([{"x": 1}, {"x": 2}])
    table.extend([{"x": 0.5}])
    assert table.axes["x"].tolist() == [1.0, 2.0, 0.5]
    table.extend([{"x": "off"}])
    write_table(tmp_path / "t.h5", table)
    assert read_table(tmp_path / "t.h5").points == [{"x": 1.0}, {"x": 2.0}, {"x": 0.5}, {"x": "off"}]


def test_numbers_of_two_kinds_stay_the_numbers_that_they_were():
    table = empty({})
    table.extend([{"x": 2**53 + 1}, {"x": 0.5}])
    assert table.points == [{"x": 2**53 + 1}, {"x": 0.5}]


def test_numpys_numbers_are_the_same_points_again(here):
    study = Study("rates", [{"rate": list(np.linspace(0, 1, 3))}], (), {}, lambda p: {"value": p["rate"]})
    assert run_study(study, "out").axes["rate"].dtype == np.float64
    assert run_study(study, "out").results["value"].tolist() == [0, 0.5, 1]


def test_lists_of_one_length_are_values(here):
    study = Study("widths", [{"hidden": [[8], [16]]}], (), {}, lambda p: {"width": p["hidden"][0]})
    assert run_study(study, "out").points == [{"hidden": [8]}, {"hidden": [16]}]
    assert run_study(study, "out").results["width"].tolist() == [8, 16]


def test_ten_thousand_points_are_one_file(here):
    """That they are read in 0.1 s or so is told in docs/howto/study.md."""
    axes = [{"n": list(range(50))}, {"k": [1, 2, 3, 4, 5]}, {"method": ["a", "b"]}]
    study = Study("big", axes, tuple(range(20)), {}, lambda p: {"value": p["n"] + 100 * p["k"] + p["seed"] / 100})
    run_study(study, "out")
    table = read_study("out/table.h5")
    assert len(table) == 10_000 and set(table.status) == {"done"}
    assert np.array_equal(table.results["value"], table.axes["n"] + 100 * table.axes["k"] + table.axes["seed"] / 100)
    assert table.points == study.points
    assert sorted(path.name for path in Path("out").iterdir()) == ["claims", "lock", "parts", "table.h5"]
    assert not list(Path("out/parts").iterdir())


def test_what_is_no_table_is_one_error(tmp_path):
    with pytest.raises(DataError, match="is missing: `hpcopt study"):
        read_study(tmp_path)
    (tmp_path / "table.h5").write_bytes(b"something")
    with pytest.raises(DataError, match="is damaged"):
        read_study(tmp_path)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(DataError, match="no table of a study"):
        read_study(tmp_path / "other.h5")
    table = empty({})
    table.extend(POINTS)
    write_table(tmp_path / "cut.h5", table)
    with h5py.File(tmp_path / "cut.h5", "r+") as file:
        del file["n"]
        file["n"] = np.arange(2)
    with pytest.raises(DataError, match="different lengths"):
        read_study(tmp_path / "cut.h5")
