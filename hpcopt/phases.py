"""Where a step's time goes: one vocabulary of phases for metrics, reports, profilers and timelines."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, NamedTuple, NoReturn, Protocol

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


class Event(Protocol):
    """A mark in a device's queue of work, as ``torch.cuda.Event``."""

    def record(self) -> None:
        """Set it behind the work that was given to the device so far."""

    def synchronize(self) -> None:
        """Wait until the device has come to it."""

    def elapsed_time(self, end_event: Any) -> float:
        """Milliseconds of the device between two that it has come to."""


class Span(NamedTuple):
    """A phase on a device, and the one that it is taken out of."""

    phase: str
    outer: str | None
    begin: Event
    end: Event


class Timeline:
    """Phases by a device's own time. The host runs ahead of a device: by the host's clock, who only gives it work looks
    quick, and who waits for it looks slow. Marks are read when the device has passed them, and then used again.
    """

    def __init__(self, event: Callable[[], Event], ranges: Callable[[str], AbstractContextManager[object]] | None):
        """``event`` makes one; ``ranges`` shows a phase to a profiler of the device, if there is one."""
        self._event, self._ranges = event, ranges
        self._free: list[Event] = []
        self._open: list[tuple[str, Event, AbstractContextManager[object] | None]] = []
        self._spans: list[Span] = []

    def enter(self, phase: str) -> None:
        """A phase begins."""
        shown = None if self._ranges is None else self._ranges(phase)
        if shown is not None:
            shown.__enter__()
        self._open.append((phase, self._mark(), shown))

    def leave(self) -> None:
        """The phase that began last ends."""
        phase, begin, shown = self._open.pop()
        self._spans.append(Span(phase, self._open[-1][0] if self._open else None, begin, self._mark()))
        if shown is not None:
            shown.__exit__(None, None, None)

    def cut(self) -> list[Span]:
        """Give what has ended since the last cut."""
        spans, self._spans = self._spans, []
        return spans

    def read(self, spans: Sequence[Span], seconds: dict[str, float]) -> None:
        """Add the spans' seconds, once the device has passed them all."""
        if spans:
            spans[-1].end.synchronize()
        for phase, outer, begin, end in spans:
            took_s = 1e-3 * begin.elapsed_time(end)
            seconds[phase] += took_s
            if outer is not None:
                seconds[outer] -= took_s
            self._free += (begin, end)

    def _mark(self) -> Event:
        event = self._free.pop() if self._free else self._event()
        event.record()
        return event


class Lap:
    """The phases of a step, known at once, or once a device has done it.

    Attributes:
        known: whether ``seconds`` would not wait.
    """

    def __init__(self, seconds: dict[str, float], timeline: Timeline | None, spans: Sequence[Span]) -> None:
        self._seconds, self._timeline, self._spans = seconds, timeline, spans
        self.known = timeline is None

    def seconds(self) -> dict[str, float]:
        """Of each phase."""
        if not self.known and self._timeline is not None:
            self._timeline.read(self._spans, self._seconds)
            self.known, self._spans = True, ()
        return self._seconds


class PhaseClock:
    """Seconds spent in each phase since the last ``lap``. Phases do not nest: an inner one is taken out of the outer
    one. A torch profiler that is on sees them too.

    Attributes:
        phases: that there are: PHASES, and those that a solver adds to them.
    """

    def __init__(self, more: Sequence[str] = (), timeline: Timeline | None = None) -> None:
        """With a ``timeline``, phases of this thread are timed on its device."""
        self.phases = tuple(dict.fromkeys((*PHASES, *more)))
        self._none = dict.fromkeys(self.phases, 0.0)
        self._seconds = self._none.copy()
        self._inner_s = 0.0
        self._timeline = timeline

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
        return self.cut().seconds()

    def cut(self) -> Lap:
        """As ``lap``, without waiting for a device."""
        seconds, self._seconds = self._seconds, self._none.copy()
        return Lap(seconds, self._timeline, () if self._timeline is None else self._timeline.cut())

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
        if clock._timeline is not None:
            clock._timeline.enter(self._phase)
        self._start_s = time.perf_counter()
        if self._seen is not None:
            self._seen.__enter__()  # type: ignore[no-untyped-call]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self._seen is not None:
            self._seen.__exit__(None, None, None)
        clock = self._clock
        if clock._timeline is not None:
            clock._timeline.leave()
            return
        elapsed_s = time.perf_counter() - self._start_s
        clock._seconds[self._phase] += elapsed_s - clock._inner_s
        clock._inner_s = self._outer_inner_s + elapsed_s
