"""At which steps the ranks meet to agree: after each, or, for a solver without lock-step, every few seconds."""

import statistics
from collections.abc import Collection

FEW, PART = 100, 10  # the next meeting is after at most so many steps, or this part of those since the first


class Meetings:
    """Between two, no rank waits for another but where the solver does. All ranks agree on the step of the next, since
    it is rank 0's wish that travels with the votes of this one.

    Attributes:
        lockstep: they meet after each step.
    """

    def __init__(self, *, lockstep: bool, every_s: float) -> None:
        """``every_s`` are the seconds between two without lock-step, about: what a stop signal may have to wait."""
        self.lockstep, self._every_s, self._next = lockstep, every_s, 0
        self._first: int | None = None

    def due(self, step: int) -> bool:
        """Whether the ranks meet after this step."""
        return self.lockstep or step >= self._next

    def wish(self, step_times_s: Collection[float]) -> int:
        """Steps until the next, after the latest steps have taken so long."""
        if self.lockstep or not step_times_s:
            return 1
        return max(1, round(self._every_s / max(statistics.median(step_times_s), 1e-6)))

    def met(self, step: int, wish: int) -> None:
        """Note what was agreed after a step. Steps may come to take far longer than those of before, as when an agent
        begins to learn: so it is never much later than so far.
        """
        self._first = step if self._first is None else self._first
        self._next = step + min(wish, max(FEW, (step - self._first) // PART))
