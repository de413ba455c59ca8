"""Where a step's time goes: one vocabulary of phases for metrics, reports, profilers and timelines."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

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
    one.
    """

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._inner_s = 0.0

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Count the body's seconds as ``phase``, one of PHASES."""
        outer_inner_s, self._inner_s = self._inner_s, 0.0
        start = time.perf_counter()
        try:
            yield
        finally:
            elapsed_s = time.perf_counter() - start
            self._seconds[phase] += elapsed_s - self._inner_s
            self._inner_s = outer_inner_s + elapsed_s

    def add(self, phase: str, seconds: float) -> None:
        """Count seconds that another thread spent in ``phase``, beside this one's."""
        self._seconds[phase] += seconds

    def lap(self) -> dict[str, float]:
        """Give the seconds of each phase since the last lap, and start from zero."""
        seconds, self._seconds = self._seconds, dict.fromkeys(PHASES, 0.0)
        return seconds
