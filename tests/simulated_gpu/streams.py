"""Streams and events of the simulated device: the order in which a real one would do its work.

Operations are done at once, but each has a place in its stream, and a stream knows of the others what it waited for. So
an operation that reads what another stream has written, or writes what another still reads, without an event between
them, is a finding; so is memory that is freed while another stream uses it. Copies from or to page-locked memory are
left for later, as a device would: into main memory the values come once the host has waited for them, and until then
there is rubbish; out of it, main memory is looked at again then, and must not have changed.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tests.simulated_gpu.ledger import LEDGER

Clock = dict[int, int]  # of streams, by number: how many of their operations are known to be over

_LOCK = threading.RLock()
_LOCAL = threading.local()
_DONE: Clock = {}  # what the host has waited for
_LATER: list["Copy"] = []  # under way
RUBBISH = 0xC5


class Copy(NamedTuple):
    """From or to page-locked memory, as an operation of a stream.

    Attributes:
        reads: this memory, unchanged until the device is done.
    """

    stream: int
    place: int
    finish: Callable[[], None]
    reads: Tensor | None = None


class Stream:
    """A queue of work."""

    made = 0

    def __init__(self, device: Any = None, priority: int = 0) -> None:
        with _LOCK:
            self.number = Stream.made
            Stream.made += 1
        self.clock: Clock = {self.number: 0}

    @staticmethod
    def default() -> "Stream":
        """That of whoever chose none."""
        return DEFAULT

    def record_event(self, event: "Event | None" = None) -> "Event":
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event: "Event") -> None:
        _merge(self.clock, event.clock)

    def wait_stream(self, other: "Stream") -> None:
        _merge(self.clock, other.clock)

    def synchronize(self) -> None:
        wait_for(self.clock)


class Event:
    """A place in a stream."""

    def __init__(self, **_: Any) -> None:
        self.clock: Clock = {}

    def record(self, stream: Stream | None = None) -> None:
        self.clock = dict((stream or current_stream()).clock)

    def wait(self, stream: Stream | None = None) -> None:
        (stream or current_stream()).wait_event(self)

    def synchronize(self) -> None:
        if not self.query():
            LEDGER.note("waits", "event")
            wait_for(self.clock)

    def query(self) -> bool:
        with _LOCK:
            over = all(_DONE.get(number, 0) >= place for number, place in self.clock.items())
            if over:
                wait_for(self.clock)  # what another thread has waited for while a copy was noted
            return over


DEFAULT = Stream()


def current_stream(device: Any = None) -> Stream:
    """Of this thread."""
    found: Stream = getattr(_LOCAL, "stream", DEFAULT)
    return found


@contextmanager
def stream(chosen: Stream) -> Iterator[None]:
    """Work of this thread goes there."""
    before = current_stream()
    _LOCAL.stream = chosen
    try:
        yield
    finally:
        _LOCAL.stream = before


def wait_for(clock: Clock | None = None) -> None:
    """The host waits for streams to come so far, by default for the current one."""
    with _LOCK:
        _merge(_DONE, current_stream().clock if clock is None else clock)
        _finish([copy for copy in _LATER if _DONE.get(copy.stream, 0) >= copy.place])


class History:
    """Of a piece of the device's memory: where it was written last and read since, each as a stream and a place."""

    def __init__(self, home: Stream) -> None:
        self.home = home
        self.recorded: set[int] = set()  # streams after which it may be freed, whatever its home knows of them
        self.written: tuple[int, int] | None = None
        self.read: Clock = {}

    def __del__(self) -> None:
        uses = [*self.read.items(), *([self.written] if self.written else [])]
        if any(number not in self.recorded and not _known(self.home, number, place) for number, place in uses):
            LEDGER.note("refused", "memory is freed while another stream uses it")


def use(read: list[Tensor], written: list[Tensor], what: str) -> None:
    """An operation of the current stream, on values of the device."""
    here = current_stream()
    with _LOCK:
        here.clock[here.number] += 1
        place = here.clock[here.number]
        for x in read:
            history = _history(x, here)
            if history.written is not None and not _known(here, *history.written):
                LEDGER.note("refused", f"{what} reads what another stream writes")
            history.read[here.number] = place
        for x in written:
            history = _history(x, here)
            before = [*history.read.items(), *([history.written] if history.written else [])]
            if not all(_known(here, *each) for each in before):
                LEDGER.note("refused", f"{what} writes what another stream uses")
            history.written, history.read = (here.number, place), {}


def made(x: Tensor) -> None:
    """Memory of the current stream, which may give it to others once it is freed."""
    _history(x, current_stream())


def record(x: Tensor, other: Stream) -> None:
    """Memory that another stream uses, too, is not given to others before that is done with it."""
    _history(x, current_stream()).recorded.add(other.number)


def pinned(size: int) -> Tensor:
    """Page-locked memory."""
    memory = torch.empty(size, dtype=torch.uint8)
    memory.untyped_storage().pinned = True  # type: ignore[attr-defined]
    return memory


def is_pinned(x: Tensor) -> bool:
    """Whether the device copies from and to x by itself."""
    return hasattr(x.untyped_storage(), "pinned")


def fetch_later(host: Tensor, values: Tensor) -> None:
    """Copy values to page-locked memory once somebody waits for it; what the device reads of that before, it has."""
    there, found, here = host.detach(), values.detach().clone(), current_stream()
    with _LOCK:
        _finish([copy for copy in _LATER if _same(copy.reads, there) and _known(here, copy.stream, copy.place)])
    there.view(-1).view(torch.uint8).fill_(RUBBISH)
    _later(lambda: there.copy_(found))


def watch(host: Tensor) -> None:
    """The device reads page-locked memory until it is waited for."""
    source, seen = host.detach(), host.detach().clone()

    def look() -> None:
        if not torch.equal(source.view(-1).view(torch.uint8), seen.view(-1).view(torch.uint8)):
            LEDGER.note("refused", "page-locked memory is written while the device reads it")

    _later(look, source)


def _later(finish: Callable[[], None], reads: Tensor | None = None) -> None:
    here = current_stream()
    with _LOCK:
        _LATER.append(Copy(here.number, here.clock[here.number], finish, reads))


def _finish(over: list[Copy]) -> None:
    _LATER[:] = [copy for copy in _LATER if not any(copy is each for each in over)]
    for copy in over:
        copy.finish()


def _same(one: Tensor | None, other: Tensor) -> bool:
    return one is not None and one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def _history(x: Tensor, here: Stream) -> History:
    storage: Any = x.untyped_storage()
    found: History | None = getattr(storage, "history", None)
    if found is None:
        found = storage.history = History(here)
    return found


def _known(stream: Stream, number: int, place: int) -> bool:
    return stream.number == number or stream.clock.get(number, 0) >= place or _DONE.get(number, 0) >= place


def _merge(into: Clock, other: Clock) -> None:
    with _LOCK:
        for number, place in other.items():
            into[number] = max(into.get(number, 0), place)
