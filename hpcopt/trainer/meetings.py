"""At which steps the ranks meet to agree: after each, or, for a solver without lock-step, every few seconds."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple


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


class Meetings:
    """Between two, no rank waits for another but where the solver does. All ranks agree on the step of the next, since
    it is rank 0's wish that travels with the votes of this one.
    """

    def __init__(self, *, lockstep: bool, every_s: float) -> None:
        """``every_s`` are the seconds between two without lock-step, about: what a stop signal may have to wait."""
        self._lockstep, self._every_s, self._next = lockstep, every_s, 0

    def due(self, step: int) -> bool:
        """Whether the ranks meet after this step."""
        return self._lockstep or step >= self._next

    def wish(self, step_times_s: Sequence[float]) -> int:
        """Steps until the next, after the latest steps have taken so long."""
        if self._lockstep or not step_times_s:
            return 1
        return max(1, round(self._every_s / max(statistics.median(step_times_s), 1e-6)))

    def met(self, step: int, wish: int) -> None:
        """Note what was agreed after a step."""
        self._next = step + wish
