"""A report's numbers are those of the points: medians and rates group by group, against numpy on the whole table."""

import csv
import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from hpcopt.errors import EXIT_BAD_INPUT, DataError
from hpcopt.study import Study, read_study, run_study
from hpcopt.study.figures import curves, phase_diagrams
from hpcopt.study.measures import Measure, chosen, grouped, varying
from hpcopt.study.report import main, parser
from hpcopt.study.view import View

SEEDS = 8


def trial(point):
    draw = np.random.default_rng([point["n"], point["k"], point["seed"], len(point["method"])])
    if point["n"] == 10 and point["k"] == 3:
        raise ArithmeticError("too few samples")
    return {"error": float(draw.exponential(10.0 ** -point["n"] * point["k"])), "steps": point["n"] + point["k"]}


AXES = [{"n": [1, 2, 5, 10]}, {"k": [1, 2, 3]}, {"method": ["gd", "altmin"]}]


@pytest.fixture
def table(here):
    return run_study(Study("trials", AXES, range(SEEDS), {}, trial), "out")


def test_groups_are_all_points_once(table):
    rows = np.arange(len(table))
    groups = grouped(table, ["k", "method"], rows)
    assert list(groups) == [(k, method) for k in (1, 2, 3) for method in ("gd", "altmin")]
    assert sorted(np.concatenate(list(groups.values()))) == rows.tolist()
    assert all(set(table.axes["k"][members]) == {k} for (k, _), members in groups.items())
    assert varying(table, rows) == ["n", "k", "method"]
    assert varying(table, chosen(table, {"k": 2})) == ["n", "method"]


def test_a_phase_diagram_has_the_medians_of_its_cells(table):
    first, second = phase_diagrams(table, Measure.of("error"), ("n", "k"), ["method"], np.arange(len(table)))
    assert "method=gd" in first.title and "method=altmin" in second.title
    trace = second.data[0]
    assert (trace["x"], trace["y"]) == (["1", "2", "5", "10"], ["1", "2", "3"])
    for column, n in enumerate((1, 2, 5, 10)):
        for row, k in enumerate((1, 2, 3)):
            own = (table.axes["n"] == n) & (table.axes["k"] == k) & (table.axes["method"] == "altmin")
            if (n, k) == (10, 3):
                assert trace["z"][row][column] is None
            else:
                assert trace["z"][row][column] == pytest.approx(np.log10(np.median(table.results["error"][own])))
    json.dumps([second.data, second.layout], allow_nan=False)


def test_a_rate_counts_failed_points_as_misses_and_points_that_are_left_as_nothing(table):
    rate = Measure.of("error<1e-4")
    values = rate.values(table)
    assert np.array_equal(values, (np.nan_to_num(table.results["error"], nan=1.0) < 1e-4).astype(float))
    table.status[:3] = "left"
    assert np.isnan(rate.values(table)[:3]).all()
    low, share, high = rate.spread(np.array([1.0, 1.0, 1.0, 0.0, np.nan]))
    assert (round(low, 4), share, round(high, 4)) == (0.3006, 0.75, 0.9544)  # Wilson's, of 3 in 4
    assert Measure.of("error > 2").values(table)[-1] == float(table.results["error"][-1] > 2)


def test_a_median_among_infinite_values_is_infinite():
    assert Measure("error").spread(np.array([math.inf, 1.0, math.inf, np.nan, math.inf])) == (math.inf,) * 3
    assert Measure("error").spread(np.array([1.0, 2.0, math.inf, math.inf, math.inf])) == (2.0, math.inf, math.inf)


def test_a_curve_has_medians_and_quartiles(table):
    figure = curves(table, Measure.of("error"), "n", ["k", "method"], np.arange(len(table)))
    assert len(figure.data) == 3 * 6
    for k, method, n, points, low, middle, high in zip(*figure.table.values(), strict=True):
        own = (table.axes["n"] == n) & (table.axes["k"] == k) & (table.axes["method"] == method)
        assert points == SEEDS
        if (n, k) == (10, 3):
            assert (low, middle, high) == (None, None, None)
        else:
            wanted = np.quantile(table.results["error"][own], [0.25, 0.5, 0.75])
            assert np.allclose((low, middle, high), wanted, rtol=1e-12)
    json.dumps([figure.data, figure.layout], allow_nan=False)


def test_the_terminal_has_a_row_a_group_and_says_what_failed(table, capsys):
    assert main(["out", "--value", "error<1e-2,steps"]) == 0
    said = capsys.readouterr().out
    assert f"trials: {24 * SEEDS} points, {2 * SEEDS} failed" in said
    assert f"{2 * SEEDS} failed: ArithmeticError: too few samples" in said
    assert re.search(r"^ +5 +3 +altmin +8 +1 \(0.6756 to 1\) +8 *$", said, re.M)
    assert len(said.splitlines()) == 3 + 24 + 1


def test_a_large_grid_is_a_map(here, capsys):
    axes = [{"n": list(range(12))}, {"k": list(range(10))}]
    run_study(Study("map", axes, (), {}, lambda p: {"value": 100 * p["n"] + p["k"]}), "map")
    assert main(["map"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "value: median by n and k"
    assert lines[2].split() == ["k", "\\", "n", *map(str, range(12))]
    assert lines[3].split() == ["9", *(f"{100 * n + 9:.2g}" for n in range(12))]
    assert len(lines) == 13
    view = View(read_study("map"), parser().parse_args(["map", "--value", "value>500,value"]))
    (caption, narrow), _ = view.as_tables(width=30)
    assert caption == "value > 500: share by n and k, one value of n in 3"
    assert narrow[0] == ["k \\ n", "0", "3", "6", "9"] and narrow[1] == ["9", "0", "0", "1", "1"]


def test_files(table, capsys):
    assert main(["out", "--csv", "all.csv", "--html", "page.html", "--tables", "tables", "--where", "method=gd"]) == 0
    rows = list(csv.DictReader(io.StringIO(Path("all.csv").read_text(encoding="utf-8"))))
    assert len(rows) == 12 * SEEDS and {row["method"] for row in rows} == {"gd"}
    assert float(rows[5]["error"]) == table.results["error"][table.axes["method"] == "gd"][5]
    page = Path("page.html").read_text(encoding="utf-8")
    assert "error by n and k" in page and "steps over n" in page
    assert sorted(path.stem for path in Path("tables").iterdir()) == [
        "curves-error-over-n",
        "curves-steps-over-n",
        "phase-error-by-n-and-k",
        "phase-steps-by-n-and-k",
    ]
    assert capsys.readouterr().out == ""


def test_a_study_that_goes_on_is_shown_as_far_as_it_is(table, capsys):
    from hpcopt.study.folder import Folder

    Folder(Path("out")).begin(Study("trials", AXES, range(SEEDS + 1), {}, trial))
    assert main(["out", "--value", "steps"]) == 0
    said = capsys.readouterr().out
    assert "24 left" in said and re.search(r"^ +1 +1 +gd +8 +2 *$", said, re.M)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--value", "errors"], "no result errors; it has error, steps, seconds"),
        (["--value", "error<x"], "with a number"),
        (["--x", "m"], "no axis m; it has n, k, method, seed"),
        (["--where", "k=9"], "no point has k = 9; there are 1, 2, 3"),
        (["--where", "k"], "write AXIS=VALUE"),
        (["--where", "method=2026-01-01"], "no point has method = 2026-01-01"),
    ],
)
def test_what_cannot_be_shown_is_one_message(table, capsys, options, says):
    assert main(["out", *options]) == EXIT_BAD_INPUT
    assert says in capsys.readouterr().err


def test_a_missing_study_is_one_message(here, capsys):
    assert main(["none"]) == EXIT_BAD_INPUT
    assert "none is missing" in capsys.readouterr().err
    with pytest.raises(DataError):
        read_study("none")
