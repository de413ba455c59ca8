"""POP's efficiencies of ranks whose work is known."""

from types import SimpleNamespace

import numpy as np
import pytest

from hpcopt.report.pop import efficiencies


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


@pytest.mark.parametrize("waits", [[[0.1]], np.zeros((0, 2)).tolist()])
def test_one_rank_or_no_step_has_none(waits):
    assert efficiencies(run(waits), 1.0) is None
