"""The clock of phases counts every second once."""

import time
from contextlib import contextmanager

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from hpcopt.phases import PHASES, PhaseClock, Timeline


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


class Queue:
    """A device that is behind: it comes to marks when somebody waits for them, or when it is let."""

    def __init__(self) -> None:
        self.time_ms, self.marks, self.waits, self.made, self.shown = 0.0, [], 0, 0, []

    def event(self) -> "Mark":
        self.made += 1
        return Mark(self)

    def work(self, ms: float) -> None:
        """Give it something to do."""
        self.marks.append(ms)

    def catch_up(self) -> None:
        for mark in self.marks:
            if isinstance(mark, Mark):
                mark.passed_ms = self.time_ms
            else:
                self.time_ms += mark
        self.marks = []

    @contextmanager
    def range(self, phase: str):
        self.shown.append(phase)
        yield
        self.shown.append(f"end of {phase}")


class Mark:
    def __init__(self, queue: Queue) -> None:
        self.queue, self.passed_ms = queue, None

    def record(self) -> None:
        self.passed_ms = None
        self.queue.marks.append(self)

    def synchronize(self) -> None:
        if self.passed_ms is None:
            self.queue.waits += 1
            self.queue.catch_up()

    def elapsed_time(self, end: "Mark") -> float:
        return end.passed_ms - self.passed_ms


def test_on_a_device_phases_take_its_own_time_and_nobody_waits_for_it():
    queue = Queue()
    clock = PhaseClock(timeline=Timeline(queue.event, queue.range))
    laps = []
    for step in range(1, 4):
        with clock("backward"):
            queue.work(1000 * step)
            with clock("exchange"):
                queue.work(500)
        clock.add("comm", 0.25)  # by another thread
        laps.append(clock.cut())
        assert queue.waits == 0 and not laps[-1].known
        queue.catch_up()  # as when the loss is read
        seconds = laps[-1].seconds()
        assert {name: s for name, s in seconds.items() if s} == {"backward": step, "exchange": 0.5, "comm": 0.25}
    assert queue.made == 4  # marks that were passed are used again
    assert queue.shown[:4] == ["backward", "exchange", "end of exchange", "end of backward"]
    with clock("update"):
        queue.work(2000)
    assert clock.lap()["update"] == 2 and queue.waits == 1
