"""Tensors of any device over a transport that reaches main memory only: each goes by way of a copy there.

A collective copies a tensor once each way, whatever the number of ranks. A message is copied when it is sent, and when
a receive is waited for. The copies lie in page-locked memory that is used again (``hpcopt.pinned``). Tensors in
main memory pass straight through.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from torch import Tensor

from hpcopt.comm.receipts import Receipts
from hpcopt.comm.roll_call import Count, RollCall
from hpcopt.comm.transport import Op, Request, SharedMemory, Transport
from hpcopt.pinned import Pool, Slot


def outside_main_memory(x: Tensor) -> bool:
    """Whether MPI cannot read x where it is."""
    return not x.is_cpu


class StagedTransport(Transport):
    """Another transport, with copies before and after it.

    Attributes:
        inner: what carries the copies.
        slots: where they lie.
    """

    def __init__(
        self, inner: Transport, away: Callable[[Tensor], bool] = outside_main_memory, slots: Pool | None = None
    ) -> None:
        """Copy the tensors for which ``away`` holds."""
        self.inner, self._away, self.slots = inner, away, slots or Pool()
        self.name, self.point_to_point, self.threaded = inner.name, inner.point_to_point, inner.threaded
        self.rank, self.size, self.traffic = inner.rank, inner.size, inner.traffic

    def carries(self, x: Tensor) -> bool:
        return not self._away(x)

    @contextmanager
    def in_main_memory(self, x: Tensor) -> Iterator[tuple[Transport, Tensor]]:
        """Give the transport beneath with x, or a copy of x that is x's in the end, also where the body fails."""
        if not self._away(x):
            yield self.inner, x
            return
        slot = self.slots.fetched(x)
        try:
            yield self.inner, slot.host
        finally:
            slot.deliver(x)

    def send(self, x: Tensor, to: int, tag: int = 0) -> Request:
        if not self._away(x):
            return self.inner.send(x, to, tag)
        slot = self.slots.fetched(x)
        return _Leaving(self.inner.send(slot.host, to, tag), slot)

    def receive(self, out: Tensor, source: int, tag: int = 0, *, exact: bool = True) -> Request:
        if not self._away(out):
            return self.inner.receive(out, source, tag, exact=exact)
        slot = self.slots.lend(out)
        return _Landing(self.inner.receive(slot.host, source, tag, exact=exact), slot, out)

    def roll_call(self, count: Count, patience_s: float | None = None) -> RollCall | None:
        return self.inner.roll_call(count, patience_s)

    def receipts(self, patience_s: float | None = None) -> Receipts | None:
        return self.inner.receipts(patience_s)

    def take(self, tag: int = 0, *, wait: bool = False) -> tuple[int, Tensor] | None:
        return self.inner.take(tag, wait=wait)

    def all_reduce(self, x: Tensor, op: Op = "sum") -> None:
        with self.in_main_memory(x) as (inner, host):
            inner.all_reduce(host, op)

    def broadcast(self, x: Tensor, root: int = 0) -> None:
        with self.in_main_memory(x) as (inner, host):
            inner.broadcast(host, root)

    def all_gather(self, x: Tensor, out: Tensor) -> None:
        self._moved(self.inner.all_gather, x, out)

    def all_to_all(self, x: Tensor, out: Tensor) -> None:
        self._moved(self.inner.all_to_all, x, out)

    def _moved(self, move: Callable[[Tensor, Tensor], None], x: Tensor, out: Tensor) -> None:
        """By a collective that fills out from x."""
        leaving = self.slots.fetched(x) if self._away(x) else None
        landing = self.slots.lend(out) if self._away(out) else None
        move(x if leaving is None else leaving.host, out if landing is None else landing.host)
        if leaving is not None:
            leaving.give_back()
        if landing is not None:
            landing.deliver(out)

    def barrier(self) -> None:
        self.inner.barrier()

    def split(self, color: int, key: int) -> "StagedTransport":
        return StagedTransport(self.inner.split(color, key), self._away, self.slots)

    def duplicate(self) -> "StagedTransport":
        return StagedTransport(self.inner.duplicate(), self._away, self.slots)

    def shared_memory(self) -> SharedMemory | None:
        return self.inner.shared_memory()

    @property
    def communicator(self) -> Any:
        return self.inner.communicator

    def abort(self, exit_code: int) -> NoReturn:
        self.inner.abort(exit_code)

    def close(self) -> None:
        self.inner.close()


class _Leaving:
    """A message whose copy is given back once it is sent."""

    def __init__(self, request: Request, slot: Slot) -> None:
        self._request = request
        self._slot: Slot | None = slot

    def wait(self) -> int:
        sent_bytes = self._request.wait()
        if self._slot is not None:
            self._slot.give_back()
            self._slot = None
        return sent_bytes

    def done(self) -> bool:
        return self._request.done()


class _Landing:
    """A receive into main memory that goes on to where it was wanted."""

    def __init__(self, request: Request, slot: Slot, out: Tensor) -> None:
        self._request, self._slot, self._out = request, slot, out
        self._received_bytes: int | None = None

    def wait(self) -> int:
        if self._received_bytes is None:
            self._received_bytes = self._request.wait()
            self._slot.deliver(self._out, self._received_bytes)
        return self._received_bytes

    def done(self) -> bool:
        return self._received_bytes is not None or self._request.done()
