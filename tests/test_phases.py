"""The clock of phases counts every second once."""

import time

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

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


def test_a_solver_adds_phases_of_its_own_and_any_other_is_refused():
    clock = PhaseClock(("rollout", "data"))
    assert clock.phases == (*PHASES, "rollout")
    clock.add("rollout", 2)
    assert clock.lap()["rollout"] == 2
    for use in (lambda: clock("rolout").__enter__(), lambda: clock.add("rolout", 1)):
        with pytest.raises(ValueError, match=r"no phase 'rolout'.*phases.*rollout"):
            use()


def test_a_profiler_sees_the_phases():
    clock = PhaseClock(("rollout",))
    with clock("data"):
        pass
    with profile(activities=[ProfilerActivity.CPU]) as seen, clock("rollout"), clock("update"):
        torch.ones(3).sum()
    names = {event.name for event in seen.events()}
    assert {"rollout", "update"} <= names and "data" not in names
