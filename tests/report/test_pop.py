"""POP's efficiencies of ranks whose work is known."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest

from hpcopt.report.export import as_csv, as_json
from hpcopt.report.overview import overview
from hpcopt.report.pop import efficiencies
from hpcopt.report.read import read_run
from hpcopt.report.summary import summarise


def run(wait_s: list[list[float]]) -> SimpleNamespace:
    waits = np.array(wait_s, dtype=np.float32)
    return SimpleNamespace(wait_s=waits, warm=np.ones(len(waits), dtype=bool))


def test_they_are_those_of_the_definition():
    found = efficiencies(run([[0.2, 0.4, 0.6], [0.2, 0.6, 0.4]]), step_s=1.0)
    assert found.load_balance == pytest.approx(0.6 / 0.8)
    assert found.communication == pytest.approx(0.8)
    assert found.parallel == pytest.approx(0.6) == pytest.approx(found.load_balance * found.communication)


def test_a_rank_that_was_absent_counts_for_nothing():
    assert efficiencies(run([[0.5, 0.5, np.nan]]), 1.0) == efficiencies(run([[0.5, 0.5]]), 1.0)


def test_ranks_that_only_wait_have_no_efficiency_and_no_error():
    found = efficiencies(run([[1.0, 1.0]]), 1.0)
    assert (found.parallel, found.load_balance, found.communication) == (0.0, 0.0, 0.0)


def test_json_csv_and_the_page_have_them(run_dir):
    """Every rank waits 5 ms."""
    one = read_run(run_dir)
    summary = summarise(one)
    step_s = sum(seconds for seconds, _ in summary.phases.values())
    assert summary.efficiencies["parallel"] == pytest.approx((step_s - 0.005) / step_s, rel=1e-4)
    (figures,) = json.loads(as_json([(one, summary)], None))["runs"]
    assert figures["efficiencies"] == pytest.approx(summary.efficiencies)
    (row,) = csv.DictReader(as_csv([(one, summary)]).splitlines())
    for name, share in summary.efficiencies.items():
        assert float(row[f"{name}_efficiency"]) == pytest.approx(share)
    shown, _ = overview([(one, summary)])
    parallel, balance, communication = (f"{share:.0%}" for share in summary.efficiencies.values())
    assert shown["efficiency"] == [f"{parallel}={balance}*{communication}"]


@pytest.mark.parametrize("waits", [[[0.1]], np.zeros((0, 2)).tolist()])
def test_one_rank_or_no_step_has_none(waits):
    assert efficiencies(run(waits), 1.0) is None
