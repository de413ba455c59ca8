"""Messages between ranks over TCP, for a group that forms anew when it loses a rank (``hpcopt.comm.links``)."""

import sys
from hashlib import blake2b
from typing import NoReturn

import torch
from torch import Tensor

from hpcopt.comm import dense
from hpcopt.comm.links import Links, LostRankError, Place
from hpcopt.comm.receipts import Receipts
from hpcopt.comm.roll_call import Count, RollCall
from hpcopt.comm.traffic import Traffic
from hpcopt.comm.transport import Op, Request, Sent, Transport, wait_all
from hpcopt.errors import PeerError

# Of the transport's own collectives: no caller's tag is negative.
GATHER, BROADCAST, ALL_TO_ALL = -1, -2, -3


class SocketTransport(Transport):
    """One rank of the generation that ``links`` is in."""

    name = "socket"
    point_to_point = True
    host_memory_only = True

    def __init__(self, links: Links, members: tuple[str, ...] | None = None, channel: str = "all") -> None:
        """Ranks are ``members`` in their order, by default all of the generation's. Messages of one channel do not meet
        those of another.
        """
        self._links, self._members = links, links.members if members is None else members
        self._generation, self._channel = links.generation, channel
        self._number = int.from_bytes(blake2b(channel.encode(), digest_size=4).digest(), "little")
        self._derived = 0
        self.rank, self.size = self._members.index(links.name), len(self._members)
        self.traffic = Traffic()

    def send(self, x: Tensor, to: int, tag: int = 0) -> Request:
        body, name = _memory(x), self._members[to]
        self.traffic.sent_bytes += len(body)
        if to == self.rank:
            place = (self._generation, self._number, name, tag)
            self._links.deliver(place, x.detach().clone().reshape(-1).view(torch.uint8).numpy())
        else:
            self._links.send(name, body, self._number, tag, self._generation)
        return Sent(len(body))

    def receive(self, out: Tensor, source: int, tag: int = 0, *, exact: bool = True) -> Request:
        return _Receive(self._links, self._place(source, tag), out, source, exact)

    def take(self, tag: int = 0, *, wait: bool = False) -> tuple[int, Tensor] | None:
        places = [self._place(source, tag) for source in range(self.size)]
        if (found := self._links.arrived(places, wait=wait)) is None:
            return None
        place, body = found
        return places.index(place), torch.from_numpy(body)

    def all_reduce(self, x: Tensor, op: Op = "sum") -> None:
        dense.all_reduce(self, x, op)

    def broadcast(self, x: Tensor, root: int = 0) -> None:
        if self.rank == root:
            wait_all([self.send(x, to, BROADCAST) for to in range(self.size) if to != root])
        else:
            self.receive(x, root, BROADCAST).wait()

    def all_gather(self, x: Tensor, out: Tensor) -> None:
        wait_all([self.send(x, to, GATHER) for to in self._others()])
        out[self.rank].copy_(x)
        wait_all([self.receive(out[source], source, GATHER) for source in self._others()])

    def all_to_all(self, x: Tensor, out: Tensor) -> None:
        wait_all([self.send(x[to], to, ALL_TO_ALL) for to in self._others()])
        out[self.rank].copy_(x[self.rank])
        wait_all([self.receive(out[source], source, ALL_TO_ALL) for source in self._others()])

    def split(self, color: int, key: int) -> "SocketTransport":
        claims = torch.empty(self.size, 3, dtype=torch.int64)
        self.all_gather(torch.tensor([color, key, self.rank]), claims)
        chosen = sorted((key, rank) for theirs, key, rank in claims.tolist() if theirs == color)
        self._derived += 1
        channel = f"{self._channel}/{self._derived}.{color}"
        part = SocketTransport(self._links, tuple(self._members[rank] for _, rank in chosen), channel)
        part.traffic = self.traffic
        return part

    def duplicate(self) -> "SocketTransport":
        self._derived += 1
        return SocketTransport(self._links, self._members, f"{self._channel}/{self._derived}")

    def roll_call(self, count: Count, patience_s: float | None = None) -> RollCall:
        return RollCall(self._links, self._members, self._number, count, patience_s)

    def receipts(self, patience_s: float | None = None) -> Receipts:
        return Receipts(self._links, self._members, self._number, patience_s)

    def abort(self, exit_code: int) -> NoReturn:
        """End every rank of the group at once: the others leave with the same code."""
        for name in self._members:
            if name != self._links.name:
                self._links.write(name, {"over": exit_code})
        self._links.break_off()
        sys.exit(exit_code)

    def close(self) -> None:
        """Leave when all are here; who is lost on the way does not matter any more."""
        try:
            self.barrier()
        except LostRankError:
            return

    def _place(self, source: int, tag: int) -> Place:
        return self._generation, self._number, self._members[source], tag

    def _others(self) -> list[int]:
        return [(self.rank + hop) % self.size for hop in range(1, self.size)]


class _Receive:
    def __init__(self, links: Links, place: Place, out: Tensor, source: int, exact: bool) -> None:
        self._links, self._place, self._out, self._source, self._exact = links, place, out, source, exact
        self._received_bytes: int | None = None

    def wait(self) -> int:
        self._look(wait=True)
        assert self._received_bytes is not None
        return self._received_bytes

    def done(self) -> bool:
        return self._look(wait=False)

    def _look(self, *, wait: bool) -> bool:
        if self._received_bytes is None and (found := self._links.arrived([self._place], wait=wait)) is not None:
            room, body = _memory(self._out), found[1]
            if len(body) > len(room) or (self._exact and len(body) != len(room)):
                raise PeerError(f"rank {self._source} sent {len(body)} bytes, not {len(room)}")
            room[: len(body)] = body.data
            self._received_bytes = len(body)
        return self._received_bytes is not None


def _memory(x: Tensor) -> memoryview:
    """The bytes of a contiguous tensor; not a copy."""
    if not x.is_contiguous():
        raise ValueError(f"a tensor of shape {tuple(x.shape)} and strides {x.stride()} is not contiguous")
    return x.detach().reshape(-1).view(torch.uint8).numpy().data
