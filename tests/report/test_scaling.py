"""Speed-up, efficiency and Karp-Flatt of runs whose step times are made up."""

import json

import numpy as np
import pytest

from hpcopt.report.read import read_run
from hpcopt.report.scaling import series_of
from hpcopt.report.summary import summarise
from hpcopt.store.metrics import MetricsFile


def run_of(folder, ranks: int, step_s: float, batch: int, seed: int = 0, exchange: str = "ring", **attributes: object):
    folder.mkdir(parents=True)
    config = {
        "run": {"name": folder.name, "seed": seed},
        "workload": {"batch": batch},
        "exchange": {"name": exchange},
    }
    file = MetricsFile(folder / "metrics.h5")
    file.create(ranks, ("forward", "exchange"), {"config": json.dumps(config), **attributes})
    step = np.arange(1, 31)
    columns = {"step": step, "step_s": np.full(30, step_s), "samples": step * batch}
    sent = np.full((30, ranks), 8)
    file.append_steps(columns, np.full((30, ranks, 2), step_s / 4), sent, sent)
    run = read_run(folder)
    return run, summarise(run)


def test_strong_scaling_by_amdahl(tmp_path):
    """With a serial fraction f, Karp-Flatt gives back f at every number of ranks."""
    f = 0.1
    runs = [run_of(tmp_path / f"p{p}", p, f + (1 - f) / p, 64) for p in (1, 2, 4, 8)]
    (series,) = series_of(runs)
    assert (series.kind, series.name) == ("strong", "batch 64")
    for point, p in zip(series.points, (1, 2, 4, 8), strict=True):
        speedup = 1 / (f + (1 - f) / p)
        assert point.ranks == p
        assert point.speedup == pytest.approx(speedup)
        assert point.efficiency == pytest.approx(speedup / p)
        assert point.karp_flatt is None if p == 1 else point.karp_flatt == pytest.approx(f)


def test_a_base_of_more_than_one_rank(tmp_path):
    runs = [run_of(tmp_path / f"p{p}", p, s, 64) for p, s in ((4, 1.0), (8, 0.6))]
    (series,) = series_of(runs)
    assert series.points[1].speedup == pytest.approx(1 / 0.6)
    assert series.points[1].efficiency == pytest.approx(4 * 1.0 / (8 * 0.6))
    assert series.points[1].karp_flatt == pytest.approx((0.6 - 0.5) / (1 - 0.5))


def test_weak_scaling(tmp_path):
    runs = [run_of(tmp_path / f"p{p}", p, s, 32 * p) for p, s in ((1, 1.0), (2, 1.25), (4, 2.0))]
    (series,) = series_of(runs)
    assert (series.kind, series.name) == ("weak", "batch 32 a rank")
    assert [point.efficiency for point in series.points] == pytest.approx([1, 0.8, 0.5])


def test_seeds_are_repeats_and_other_settings_other_series(tmp_path):
    runs = [
        run_of(tmp_path / f"{exchange}-{p}-{seed}", p, s * (seed + 1), 64, seed, exchange)
        for exchange in ("ring", "vote")
        for p, s in ((1, 1.0), (2, 0.5))
        for seed in range(3)
    ]
    found = {series.name: series for series in series_of(runs)}
    assert set(found) == {"ring, batch 64", "vote, batch 64"}
    point = found["vote, batch 64"].points[1]
    assert (point.repeats, point.low_s, point.step_s, point.high_s) == (3, 0.5, 1.0, 1.5)


def test_oversubscribed_and_loopback_runs_are_left_out(tmp_path):
    runs = [run_of(tmp_path / f"p{p}", p, 1 / p, 64, oversubscribed=p == 4) for p in (1, 2, 4)]
    assert [point.ranks for point in series_of(runs)[0].points] == [1, 2]
    assert series_of(runs[1:]) == []
