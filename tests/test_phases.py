"""The clock of phases counts every second once."""

import time

import pytest

from hpcopt.phases import PHASES, PhaseClock


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    clock = PhaseClock()
    clock.sleep = lambda seconds: now.__setitem__(0, now[0] + seconds)
    return clock


def test_an_inner_phase_is_taken_out_of_the_outer(clock):
    with clock("exchange"):
        clock.sleep(1)
        with clock("encode"):
            clock.sleep(2)
            with clock("comm"):
                clock.sleep(4)
        with clock("decode"):
            clock.sleep(8)
        clock.sleep(16)
    assert {phase: s for phase, s in clock.lap().items() if s} == {"exchange": 17, "encode": 2, "comm": 4, "decode": 8}


def test_a_lap_starts_from_zero_and_names_every_phase(clock):
    for _ in range(2):
        with clock("data"):
            clock.sleep(3)
    assert clock.lap()["data"] == 6
    assert clock.lap() == dict.fromkeys(PHASES, 0.0)


def test_a_failing_phase_is_counted(clock):
    with pytest.raises(ValueError, match="x"), clock("update"):
        clock.sleep(1)
        raise ValueError("x")
    assert clock.lap()["update"] == 1
