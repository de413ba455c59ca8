"""Ranks as threads of one process: the same algorithms without MPI, for tests and rehearsals with a thousand ranks."""

import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor

from hpcopt.comm.traffic import Traffic
from hpcopt.comm.transport import SHARED_BYTES, Op, Request, Sent, SharedMemory, Transport
from hpcopt.errors import PeerError

Result = TypeVar("Result")

_GONE = object()  # arrives in every mailbox when a rank has failed
_REDUCE: dict[Op, Callable[[Tensor, Tensor], Tensor]] = {"sum": torch.add, "max": torch.maximum, "min": torch.minimum}


class LoopbackHub:
    """The memory that the ranks of one group share: a mailbox for each (source, destination, tag) and two boards with a
    place for each rank, which take turns: nobody writes on one again before all have read it and come to the other.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.boards: list[list[Any]] = [[None] * size, [None] * size]
        self.meetings = [0] * size  # at a board, of each rank
        self.barrier = threading.Barrier(size)
        self.failed = False
        self._lock = threading.Lock()
        self._mailboxes: defaultdict[tuple[int, int, int], SimpleQueue[Any]] = defaultdict(SimpleQueue)
        self._subgroups: list[LoopbackHub] = []
        self.arrivals = [threading.Condition() for _ in range(size)]
        self.awaiting = [0] * size  # threads of a rank that look for a message from anybody

    def mailbox(self, source: int, to: int, tag: int) -> "SimpleQueue[Any]":
        """The queue of messages from source to ``to`` with this tag, in the order they were sent."""
        with self._lock:
            if self.failed and (source, to, tag) not in self._mailboxes:
                self._mailboxes[source, to, tag].put(_GONE)
            return self._mailboxes[source, to, tag]

    def announce(self, to: int) -> None:
        """Wake a rank that waits for a message from anybody. One that begins to now finds what is there by itself."""
        if self.awaiting[to]:
            with self.arrivals[to]:
                self.arrivals[to].notify_all()

    def subgroup(self, size: int) -> "LoopbackHub":
        """A new hub that fails when this one does."""
        hub = LoopbackHub(size)
        with self._lock:
            self._subgroups.append(hub)
        return hub

    def fail(self) -> None:
        """Wake every rank that waits, with an error."""
        with self._lock:
            self.failed = True
            mailboxes, subgroups = list(self._mailboxes.values()), list(self._subgroups)
        self.barrier.abort()
        for mailbox in mailboxes:
            mailbox.put(_GONE)
        for to in range(self.size):
            self.announce(to)
        for hub in subgroups:
            hub.fail()


class LoopbackTransport(Transport):
    """One rank's view of a hub."""

    name = "loopback"
    point_to_point = True

    def __init__(self, hub: LoopbackHub, rank: int, traffic: Traffic | None = None) -> None:
        self._hub = hub
        self.rank = rank
        self.size = hub.size
        self.traffic = traffic or Traffic()
        self._shared: _Shared | None = None
        self._turn = 0

    def send(self, x: Tensor, to: int, tag: int = 0) -> Request:
        self.traffic.sent_bytes += x.numel() * x.element_size()
        self._hub.mailbox(self.rank, to, tag).put(x.detach().clone())
        self._hub.announce(to)
        return Sent(x.numel() * x.element_size())

    def receive(self, out: Tensor, source: int, tag: int = 0, *, exact: bool = True) -> Request:
        return _Receive(self._hub.mailbox(source, self.rank, tag), out, source, exact)

    def take(self, tag: int = 0, *, wait: bool = False) -> tuple[int, Tensor] | None:
        arrivals = self._hub.arrivals[self.rank]
        with arrivals:
            self._hub.awaiting[self.rank] += 1
            try:
                while (found := self._waiting(tag)) is None and wait:
                    arrivals.wait()
            finally:
                self._hub.awaiting[self.rank] -= 1
        return found

    def _waiting(self, tag: int) -> tuple[int, Tensor] | None:
        """The first message of a tag from any rank; another rank at each call has the first turn."""
        self._turn += 1
        for source in ((self._turn + k) % self.size for k in range(self.size)):
            mailbox = self._hub.mailbox(source, self.rank, tag)
            if not mailbox.empty():
                message = mailbox.get()
                if message is _GONE:
                    mailbox.put(_GONE)
                    raise PeerError(f"rank {source} failed before it sent")
                return source, message.view(-1).view(torch.uint8)
        return None

    def all_reduce(self, x: Tensor, op: Op = "sum") -> None:
        self._count("all_reduce", x)
        parts = self._everyones(x.clone())  # x is written to while others still read
        total = parts[0]
        for part in parts[1:]:
            total = _REDUCE[op](total, part)
        x.copy_(total)

    def broadcast(self, x: Tensor, root: int = 0) -> None:
        self._count("broadcast", x, root)
        parts = self._everyones(x.clone() if self.rank == root else None)
        if self.rank != root:
            x.copy_(parts[root])

    def all_gather(self, x: Tensor, out: Tensor) -> None:
        self._count("all_gather", x)
        for place, part in zip(out, self._everyones(x.clone()), strict=True):
            place.copy_(part)

    def all_to_all(self, x: Tensor, out: Tensor) -> None:
        self._count("all_to_all", x)
        for place, part in zip(out, self._everyones(x.clone()), strict=True):
            place.copy_(part[self.rank])

    def barrier(self) -> None:
        self._wait()

    def split(self, color: int, key: int) -> "LoopbackTransport":
        claims = self._everyones((color, key, self.rank))
        members = [rank for c, _, rank in sorted(claims, key=lambda claim: claim[1:]) if c == color]
        hubs = self._everyones(self._hub.subgroup(len(members)) if self.rank == members[0] else None)
        return LoopbackTransport(hubs[members[0]], members.index(self.rank), self.traffic)

    def duplicate(self) -> "LoopbackTransport":
        copy = self.split(0, self.rank)
        copy.traffic = Traffic()
        return copy

    def abort(self, exit_code: int) -> NoReturn:
        self._hub.fail()
        raise SystemExit(exit_code)

    def shared_memory(self) -> SharedMemory:
        if self._shared is None:
            self._shared = _Shared(self._everyones(torch.empty(SHARED_BYTES, dtype=torch.uint8)), self._wait)
        return self._shared

    def _everyones(self, thing: Any) -> list[Any]:
        self._hub.meetings[self.rank] += 1
        board = self._hub.boards[self._hub.meetings[self.rank] % 2]
        board[self.rank] = thing
        self._wait()
        return list(board)

    def _wait(self) -> None:
        try:
            self._hub.barrier.wait()
        except threading.BrokenBarrierError:
            raise PeerError(f"rank {self.rank}: another rank failed") from None


@dataclass
class _Shared:
    parts: list[Tensor]
    meet: Callable[[], None]
    plans: dict[Any, Any] = field(default_factory=dict)


class _Receive:
    def __init__(self, mailbox: "SimpleQueue[Any]", out: Tensor, source: int, exact: bool) -> None:
        self._mailbox, self._out, self._source, self._exact = mailbox, out, source, exact
        self._received_bytes: int | None = None

    def wait(self) -> int:
        if self._received_bytes is not None:
            return self._received_bytes
        message = self._mailbox.get()
        if message is _GONE:
            self._mailbox.put(_GONE)
            raise PeerError(f"rank {self._source} failed before it sent")
        sent_bytes: int = message.numel() * message.element_size()
        room_bytes = self._out.numel() * self._out.element_size()
        if sent_bytes > room_bytes or (self._exact and sent_bytes != room_bytes):
            raise PeerError(f"rank {self._source} sent {_kind(message)}, not {_kind(self._out)}")
        self._out.view(-1).view(torch.uint8)[:sent_bytes].copy_(message.view(-1).view(torch.uint8))
        self._received_bytes = sent_bytes
        return sent_bytes

    def done(self) -> bool:
        return self._received_bytes is not None or not self._mailbox.empty()


def _kind(x: Tensor) -> str:
    return f"{x.numel()} x {x.dtype}"


def run_ranks(size: int, program: Callable[[Transport], Result]) -> list[Result]:
    """Run ``program(transport)`` on ``size`` ranks and give their results in rank order.

    torch's global random generator is shared by all threads: a program that must be deterministic brings its own.

    Raises:
        Exception: the first rank's own failure; the others are woken and end.
    """
    hub = LoopbackHub(size)
    results: list[Any] = [None] * size
    failures: list[BaseException] = []

    def rank_main(rank: int) -> None:
        try:
            results[rank] = program(LoopbackTransport(hub, rank))
        except BaseException as failure:
            failures.append(failure)
            hub.fail()

    threads = [threading.Thread(target=rank_main, args=(rank,), name=f"rank{rank}") for rank in range(size)]
    try:
        for thread in threads:
            thread.start()
    except RuntimeError:  # there are as many threads as the system allows: those that wait for the others end
        hub.fail()
        raise
    finally:
        for thread in threads:
            if thread.ident is not None:
                thread.join()
    own = [failure for failure in failures if not isinstance(failure, PeerError)]
    if failures:
        raise (own or failures)[0]
    return results
