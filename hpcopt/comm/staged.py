"""Tensors of any device over a transport that reaches main memory only: each goes by way of a copy there.

The copies are made where the message is: one when it is sent, one when a receive is waited for, and nothing overlaps
them. Tensors in main memory pass straight through.
"""

from collections.abc import Callable
from typing import NoReturn

import torch
from torch import Tensor

from hpcopt.comm.transport import Op, Request, Transport


def outside_main_memory(x: Tensor) -> bool:
    """Whether MPI cannot read x where it is."""
    return x.device.type != "cpu"


class StagedTransport(Transport):
    """Another transport, with copies before and after it."""

    def __init__(self, inner: Transport, away: Callable[[Tensor], bool] = outside_main_memory) -> None:
        """Copy the tensors for which ``away`` holds."""
        self._inner, self._away = inner, away
        self.name, self.point_to_point, self.threaded = inner.name, inner.point_to_point, inner.threaded
        self.rank, self.size, self.traffic = inner.rank, inner.size, inner.traffic

    def send(self, x: Tensor, to: int, tag: int = 0) -> Request:
        return self._inner.send(self._copied(x), to, tag)

    def receive(self, out: Tensor, source: int, tag: int = 0, *, exact: bool = True) -> Request:
        if not self._away(out):
            return self._inner.receive(out, source, tag, exact=exact)
        landing = _room(out)
        return _Landing(self._inner.receive(landing, source, tag, exact=exact), landing, out)

    def take(self, tag: int = 0, *, wait: bool = False) -> tuple[int, Tensor] | None:
        return self._inner.take(tag, wait=wait)

    def all_reduce(self, x: Tensor, op: Op = "sum") -> None:
        host = self._copied(x)
        self._inner.all_reduce(host, op)
        self._put_back(host, x)

    def broadcast(self, x: Tensor, root: int = 0) -> None:
        host = self._copied(x)
        self._inner.broadcast(host, root)
        self._put_back(host, x)

    def all_gather(self, x: Tensor, out: Tensor) -> None:
        landing = _room(out) if self._away(out) else out
        self._inner.all_gather(self._copied(x), landing)
        self._put_back(landing, out)

    def all_to_all(self, x: Tensor, out: Tensor) -> None:
        landing = _room(out) if self._away(out) else out
        self._inner.all_to_all(self._copied(x), landing)
        self._put_back(landing, out)

    def barrier(self) -> None:
        self._inner.barrier()

    def split(self, color: int, key: int) -> "StagedTransport":
        return StagedTransport(self._inner.split(color, key), self._away)

    def duplicate(self) -> "StagedTransport":
        return StagedTransport(self._inner.duplicate(), self._away)

    def abort(self, exit_code: int) -> NoReturn:
        self._inner.abort(exit_code)

    def close(self) -> None:
        self._inner.close()

    def _copied(self, x: Tensor) -> Tensor:
        return _room(x).copy_(x.detach()) if self._away(x) else x

    def _put_back(self, host: Tensor, x: Tensor) -> None:
        if host is not x:
            x.detach().copy_(host)


def _room(like: Tensor) -> Tensor:
    return torch.empty(like.shape, dtype=like.dtype)


class _Landing:
    """A receive into main memory that goes on to where it was wanted."""

    def __init__(self, request: Request, landing: Tensor, out: Tensor) -> None:
        self._request, self._landing, self._out = request, landing, out
        self._received_bytes: int | None = None

    def wait(self) -> int:
        if self._received_bytes is None:
            self._received_bytes = self._request.wait()
            target, source = (x.view(-1).view(torch.uint8)[: self._received_bytes] for x in (self._out, self._landing))
            target.copy_(source)
        return self._received_bytes

    def done(self) -> bool:
        return self._received_bytes is not None or self._request.done()
