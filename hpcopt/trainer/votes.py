"""What a rank wants done after a step, summed up to what all ranks do."""

import time
from typing import NamedTuple

from hpcopt.comm.world import World
from hpcopt.phases import PhaseClock
from hpcopt.trainer.meetings import Meetings
from hpcopt.trainer.pace import Pace
from hpcopt.trainer.recorder import Recorder
from hpcopt.trainer.run import RunConfig
from hpcopt.trainer.saver import Saver
from hpcopt.trainer.signals import StopSignals

LOOK_S = 0.1  # from one look at what is due by the clock to the next: it costs as much as the rest of a step's votes
NONE = (False, False, False)  # of wishes: to flush, to take a checkpoint for written, to save


class Verdict(NamedTuple):
    """What all ranks know and do after a step; what a rank decides by itself where they do not meet.

    Attributes:
        met: whether the ranks met, so that all of this is the same on all of them.
        loss: of the global batch, or this rank's summand of it; None if there is none.
        stop, late: whether to leave, for a signal or for the time budget.
        flush: whether to write the metrics.
        written: whether every rank has written its part of the checkpoint under way.
        save: whether to save, by the clock.
    """

    met: bool
    loss: float | None
    stop: bool = False
    late: bool = False
    flush: bool = False
    written: bool = False
    save: bool = False


class Votes:
    """A rank's own, step by step. A wish that comes with the clock stands until it is granted or looked at again: then
    ranks that look at different steps still come to wish the same.
    """

    def __init__(
        self,
        world: World,
        run: RunConfig,
        *,
        clock: PhaseClock,
        meetings: Meetings,
        recorder: Recorder,
        saver: Saver,
        pace: Pace,
        signals: StopSignals,
        begun_s: float | None = None,
    ) -> None:
        """Begin; the time budget counts from ``begun_s``, by the monotonic clock, or from now."""
        self._world, self._clock, self._meetings = world, clock, meetings
        self._recorder, self._saver, self._pace, self._signals = recorder, saver, pace, signals
        self._budget_s, self._log_every_s = run.time_budget, run.log_every_s
        self._next_look_s = time.monotonic()
        self._start_s = self._next_look_s if begun_s is None else begun_s
        self._wishes = NONE

    def sum_up(self, step: int, loss: float | None) -> Verdict:
        """Sum the ranks' parts of the loss, None if no rank has one; stop, hurry or flush on all ranks if one wants to,
        take a checkpoint for written if all have written, save and meet again when rank 0 wants to. Collective.
        """
        now_s, world, meetings = time.monotonic(), self._world, self._meetings
        if now_s >= self._next_look_s:
            self._look(now_s)
        again = 0 if meetings.lockstep or world.rank else meetings.wish(self._recorder.step_times_s)
        late = self._budget_s is not None and self._late(now_s, self._budget_s)
        stop = self._signals.received is not None
        sums: list[float] = [loss or 0.0, loss is not None, stop, late, *self._wishes, again]
        if world.size > 1:
            with self._clock("exchange"):
                sums = world.sum(sums)
        total, landed, stops, lates, flushes, written, saves, wait = sums
        if not meetings.lockstep:
            meetings.met(step, int(wait))
        every = written == world.size
        return Verdict(True, total if landed else None, stops > 0, lates > 0, flushes > 0, every, saves > 0)

    def granted(self) -> None:
        """Wish nothing until the next look: something that was due is done."""
        self._wishes = NONE

    def _look(self, now_s: float) -> None:
        self._next_look_s, saver = now_s + LOOK_S, self._saver
        save = self._world.rank == 0 and not saver.under_way and self._pace.wanted(saver.took_s)
        self._wishes = self._recorder.flush_due(self._log_every_s), saver.written, save

    def _late(self, now_s: float, budget_s: float) -> bool:
        longest_step_s = max(self._recorder.step_times_s, default=0.0)
        return now_s - self._start_s + 2 * longest_step_s > budget_s
