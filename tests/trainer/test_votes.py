"""What is due by the clock is looked at now and then, by each rank at steps of its own; all come to do it together."""

import math
import threading
from types import SimpleNamespace

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World, alone
from hpcopt.phases import PhaseClock
from hpcopt.trainer import votes
from hpcopt.trainer.meetings import Meetings
from hpcopt.trainer.run import RunConfig
from hpcopt.trainer.votes import Votes


class House(SimpleNamespace):
    """What a rank's wishes are read from."""

    def __init__(self) -> None:
        super().__init__(due=False, written=False, under_way=False, took_s=0.0, received=None, step_times_s=[])

    def flush_due(self, every_s: float) -> bool:
        return self.due

    def wanted(self, took_s: float) -> bool:
        return False


def votes_of(world: World, house: House, **run) -> Votes:
    parts = dict.fromkeys(("recorder", "saver", "pace", "signals"), house)
    meetings = Meetings(lockstep=True, every_s=1)
    return Votes(world, RunConfig(steps=9, **run), clock=PhaseClock(), meetings=meetings, **parts)


def test_a_wish_stands_until_it_is_granted_or_looked_at_again(monkeypatch):
    monkeypatch.setattr(votes, "LOOK_S", math.inf)
    house = House()
    house.due = True
    mine = votes_of(alone(), house)
    assert [mine.sum_up(step, 1.0).flush for step in (1, 2)] == [True, True]
    mine.granted()
    assert not mine.sum_up(3, 1.0).flush


def test_ranks_that_look_at_different_steps_agree_that_all_have_written(monkeypatch):
    now_s: dict[int, float] = {}
    monkeypatch.setattr(votes, "time", SimpleNamespace(monotonic=lambda: now_s[threading.get_ident()]))

    def program(transport):
        thread, house = threading.get_ident(), House()
        now_s[thread] = 0.0
        mine, found = votes_of(World(transport), house), []
        for step in range(1, 13):
            now_s[thread] += votes.LOOK_S / (2 + transport.rank)  # looks at every second, third, fourth step
            house.written = step > 2
            found.append(mine.sum_up(step, None).written)
        return found

    first, *others = run_ranks(3, program)
    assert not any(first[:2]) and all(first[-3:])
    assert all(other == first for other in others)


def test_a_signal_and_a_budget_wait_for_no_look(monkeypatch):
    monkeypatch.setattr(votes, "LOOK_S", math.inf)
    house = House()
    mine = votes_of(alone(), house, time_budget=3600)
    first = mine.sum_up(1, 1.0)
    assert (first.stop, first.late) == (False, False)
    house.received, house.step_times_s = "TERM", [7200.0]
    then = mine.sum_up(2, 1.0)
    assert (then.stop, then.late) == (True, True)
