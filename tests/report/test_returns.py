"""Interquartile means and their intervals against scipy and closed forms; plots of runs whose returns are known."""

import json

import numpy as np
import pytest
from scipy.stats import trim_mean

from hpcopt.report.__main__ import main
from hpcopt.report.figures import figures_of
from hpcopt.report.interquartile import bootstrap_interval, interquartile_mean
from hpcopt.report.read import read_run
from hpcopt.report.summary import summarise
from hpcopt.store.metrics import MetricsFile
from tests.report.conftest import PHASES


@pytest.mark.parametrize("runs", [1, 2, 3, 4, 5, 8, 10])
@pytest.mark.parametrize("tasks", [1, 3])
def test_interquartile_mean_is_the_trimmed_mean_of_all_scores(runs, tasks):
    scores = np.random.default_rng(runs).normal(size=(7, runs, tasks))
    expected = [trim_mean(table, 0.25, axis=None) for table in scores]
    np.testing.assert_allclose(interquartile_mean(scores), expected)


def test_a_score_that_is_no_number_is_seen():
    assert np.isnan(interquartile_mean(np.array([[1.0], [2.0], [3.0], [np.nan]])))


def test_an_interval_is_of_the_drawn_means():
    """Of two runs, the mean of two draws is 0, 1 or 2 with probabilities 1/4, 1/2, 1/4."""
    scores = np.array([[0.0], [2.0]])
    assert bootstrap_interval(scores, confidence=0.95) == (0, 2)
    assert bootstrap_interval(scores, confidence=0.4) == (1, 1)
    assert bootstrap_interval(np.array([[5.0]])) == (5, 5)


def test_an_interval_is_as_wide_as_theory_says():
    """Of many normal scores, the interquartile mean spreads as the trimmed mean's influence function says: the variance
    of a score cut off at the quartiles, over (1/2)^2 and the number of runs.
    """
    scores = np.random.default_rng(0).normal(size=(400, 1))
    cut = np.clip(scores, *np.quantile(scores, [0.25, 0.75]))
    expected = 2 * 1.96 * cut.std() / 0.5 / np.sqrt(400)
    low, high = bootstrap_interval(scores)
    assert high - low == pytest.approx(expected, rel=0.1)


def test_runs_are_drawn_within_their_task():
    """Tasks of other scales alone make no interval."""
    assert bootstrap_interval(np.array([[0.0, 10.0]] * 3)) == (5, 5)


def make_run(folder, seed, width, shift=0.0, returns=(0.0, 10.0, 40.0)):
    """Four steps, each of 100 environment steps and 50 updates; an evaluation every other, of ``returns + shift``."""
    folder.mkdir(parents=True)
    file = MetricsFile(folder / "metrics.h5")
    config = json.dumps({"run": {"name": "known", "seed": seed}, "solver": {"width": width}})
    file.create(1, PHASES, {"title": "known", "config": config})
    step = np.arange(1, 5)
    columns = {"step": step, "time_s": step * 0.5, "env_steps": step * 100.0, "updates": step * 50.0}
    columns |= {"lag": np.array([0.0, 2, 1, 2]), "replay_age": np.array([np.nan, 80, np.nan, 150])}
    columns |= {"learner_idle": np.zeros(4)}
    file.append_steps(columns, np.zeros((4, 1, 4)), np.zeros((4, 1)), np.zeros((4, 1)))
    for at, value in zip((0, 2, 4), returns, strict=True):
        file.append_evaluation(at, at * 0.5, {"evaluation_return": value + shift}, {"evaluation_return": "higher"})
    return folder


@pytest.fixture
def folders(tmp_path):
    wide = [make_run(tmp_path / f"wide{seed}", seed, 512, shift) for seed, shift in enumerate((0, 1, 2, 3, 100))]
    return [*wide, make_run(tmp_path / "narrow", 0, 256)]


def figures(folders):
    runs = [(run, summarise(run)) for run in map(read_run, folders)]
    return {figure.name: figure for figure in figures_of(runs)}


def test_returns_stand_against_steps_seconds_and_updates(folders):
    found = figures(folders)
    assert list(found)[:4] == ["returns", "last-returns", "lag", "replay_age"]  # nobody waited
    assert "evaluation_return" not in found
    table = found["returns"].table
    mine = [
        i
        for i, (run, repeat) in enumerate(zip(table["run"], table["repeat"], strict=True))
        if (repeat, "512" in run) == (1, True)
    ]
    assert [table["env_steps"][i] for i in mine] == [0, 200, 400]
    assert [table["updates"][i] for i in mine] == [0, 100, 200]
    assert [table["time_s"][i] for i in mine] == [0, 1, 2]
    assert [table["evaluation_return"][i] for i in mine] == [1, 11, 41]
    thick = [trace for trace in found["returns"].data if trace["line"]["width"] == 3]
    assert [trace["x"] for trace in thick] == [[0, 200, 400], [0, 1, 2], [0, 100, 200]]
    assert thick[0]["y"] == [2, 12, 42]  # of 0 1 2 3 100 the mean of 1 2 3
    bands = [trace for trace in found["returns"].data if "fill" in trace]
    assert len(bands) == 3
    assert bands[0]["y"][2] <= 42 <= bands[0]["y"][3]
    (single,) = [t for t in found["returns"].data if "256" in t["name"] and t["xaxis"] == "x"]
    assert single["y"] == [0, 10, 40]


def test_last_returns_and_lag(folders):
    found = figures(folders)
    last = found["last-returns"].table
    assert (last["repeats"], last["interquartile_mean"]) == ([5, 1], [42, 40])
    assert (last["low"][1], last["high"][1]) == (40, 40)
    assert last["low"][0] < 42 < last["high"][0] <= 140
    age = found["replay_age"].table
    assert (age["env_steps"][:2], age["replay_age"][:2]) == ([200, 400], [80, 150])


def test_repeats_that_were_evaluated_elsewhere_meet_on_straight_lines(tmp_path):
    first, second = (make_run(tmp_path / str(seed), seed, 512) for seed in range(2))
    MetricsFile(second / "metrics.h5").append_evaluation(5, 2.5, {"evaluation_return": 90.0})
    (mean, *_) = [t for t in figures([first, second])["returns"].data if t["line"]["width"] == 3 and t["xaxis"] == "x2"]
    assert mean["x"] == [0, 1, 2]  # where both were evaluated
    assert mean["y"] == [0, 10, 40]


def test_the_page_has_them_and_other_runs_do_not(folders, run_dir, tmp_path):
    assert main([*map(str, folders), "--html", str(tmp_path / "page.html")]) == 0
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert 'id="returns"' in text and 'id="lag"' in text
    assert not {"returns", "last-returns", "lag"} & set(figures([run_dir]))
