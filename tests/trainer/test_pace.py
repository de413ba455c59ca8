"""Checkpoints by time: an early first one, then within their share; by steps: at those steps and at no other."""

import pytest

from hpcopt.trainer import pace
from hpcopt.trainer.pace import LEAST_S, Pace


class Clock:
    """Stands in for the clock of the machine."""

    now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(pace, "time", clock)
    return clock


@pytest.mark.parametrize("took_s", [0.01, 0.5, 20.0])
def test_the_share_is_kept_and_the_first_is_early(clock, took_s):
    by_time, share, saved_s, taken_s = Pace(None, 0.02, at_evaluations=False), 0.02, [], 0.0
    start_s = clock.now_s
    for step in range(1, 40_000):
        clock.now_s += 0.25
        wanted = by_time.wanted(taken_s)
        if by_time.due(step, wanted=wanted, evaluated=False):
            saved_s.append(clock.now_s - start_s)
            clock.now_s += took_s
            taken_s = took_s
    assert saved_s[0] == LEAST_S
    assert len(saved_s) * took_s <= share * (clock.now_s - start_s) + took_s
    assert len(saved_s) * took_s >= 0.5 * share * (clock.now_s - start_s) or saved_s[1] - saved_s[0] < LEAST_S + 1


def test_a_slow_machines_first_step_is_saved(clock):
    slow = Pace(None, 0.02, at_evaluations=False)
    clock.now_s += 60
    assert slow.due(1, wanted=slow.wanted(0.0), evaluated=False)
    assert not slow.wanted(1.0)


def test_by_steps_no_clock_counts(clock):
    steps = Pace(3, 0.02, at_evaluations=True)
    clock.now_s += 1000
    assert not steps.wanted(0.0)
    assert [s for s in range(1, 10) if steps.due(s, wanted=True, evaluated=False)] == [3, 6, 9]


def test_what_a_checkpoint_would_change_is_saved_at_evaluations_only(clock):
    piped = Pace(None, 0.02, at_evaluations=True)
    clock.now_s += 1000
    assert not piped.due(1, wanted=piped.wanted(0.0), evaluated=False)
    assert piped.due(2, wanted=piped.wanted(0.0), evaluated=True)
    assert not piped.wanted(0.0)
