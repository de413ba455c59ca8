"""Where a step's time goes: one vocabulary of phases for metrics, reports, profilers and timelines."""

import time
from collections.abc import Sequence
from types import TracebackType
from typing import NoReturn

from torch.autograd import profiler

PHASES = (
    "data",  # waiting for the next batch
    "forward",
    "backward",
    "factor",  # K-FAC statistics
    "inverse",  # K-FAC inverses
    "precondition",
    "exchange",  # the training thread waiting for gradients, or for anything else, from other ranks
    "encode",  # payloads being made
    "comm",  # bytes under way
    "decode",  # payloads being read
    "update",  # the optimizer
    "checkpoint",
    "evaluate",
)


class PhaseClock:
    """Seconds spent in each phase since the last ``lap``. Phases do not nest: an inner one is taken out of the outer
    one. A torch profiler that is on sees them too.

    Attributes:
        phases: that there are: PHASES, and those that a solver adds to them.
    """

    def __init__(self, more: Sequence[str] = ()) -> None:
        self.phases = tuple(dict.fromkeys((*PHASES, *more)))
        self._none = dict.fromkeys(self.phases, 0.0)
        self._seconds = self._none.copy()
        self._inner_s = 0.0

    def __call__(self, phase: str) -> "Region":
        """Count the body's seconds as ``phase``.

        Raises:
            ValueError: there is no such phase.
        """
        if phase not in self._seconds:
            self._refuse(phase)
        return Region(self, phase)

    def add(self, phase: str, seconds: float) -> None:
        """Count seconds that another thread spent in ``phase``, beside this one's.

        Raises:
            ValueError: there is no such phase.
        """
        if phase not in self._seconds:
            self._refuse(phase)
        self._seconds[phase] += seconds

    def lap(self) -> dict[str, float]:
        """Give the seconds of each phase since the last lap, and start from zero."""
        seconds, self._seconds = self._seconds, self._none.copy()
        return seconds

    def _refuse(self, phase: str) -> NoReturn:
        raise ValueError(
            f"there is no phase {phase!r}: a solver names those that it adds in its config's `phases`; known are "
            + ", ".join(self.phases)
        )


class Region:
    """A body whose seconds are counted. Not a generator: a step has several."""

    __slots__ = ("_clock", "_outer_inner_s", "_phase", "_seen", "_start_s")

    def __init__(self, clock: PhaseClock, phase: str) -> None:
        self._clock, self._phase = clock, phase

    def __enter__(self) -> None:
        clock = self._clock
        self._outer_inner_s, clock._inner_s = clock._inner_s, 0.0
        self._seen = profiler.record_function(self._phase) if profiler._is_profiler_enabled else None
        self._start_s = time.perf_counter()
        if self._seen is not None:
            self._seen.__enter__()  # type: ignore[no-untyped-call]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self._seen is not None:
            self._seen.__exit__(None, None, None)
        elapsed_s, clock = time.perf_counter() - self._start_s, self._clock
        clock._seconds[self._phase] += elapsed_s - clock._inner_s
        clock._inner_s = self._outer_inner_s + elapsed_s
