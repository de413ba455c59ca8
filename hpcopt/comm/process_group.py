"""A process group of ``torch.distributed`` as a transport: for programs that have one already, of gloo or torch's MPI,
and for the collectives of ``hpcopt.comm.nccl``.

A receiver may not know how long a message is, and gloo takes a receive of another length for a broken connection. So a
message is two: its length in bytes, then the bytes. A thread for each (source, tag) takes them in turn, and a send can
go on while its receiver waits for something else.

A group's ranks are numbered within the group. Groups that are made here end with ``destroy_process_group``.
"""

from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from hpcopt.comm.traffic import Traffic
from hpcopt.comm.transport import Op, Request, Transport
from hpcopt.errors import LaunchError, PeerError

_OPS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN}
_WIDE = {torch.bfloat16: torch.float32, torch.float16: torch.float32}  # what gloo may be built without


class ProcessGroupTransport(Transport):
    """The ranks of a process group, in main memory."""

    name = "process group"
    point_to_point = True
    host_memory_only = True

    def __init__(self, group: dist.ProcessGroup | None = None, traffic: Traffic | None = None) -> None:
        """Take a group; None: the one that ``init_process_group`` made.

        Raises:
            LaunchError: there is no process group.
        """
        if not dist.is_initialized():
            raise LaunchError("no process group: call torch.distributed.init_process_group first")
        self._group = dist.distributed_c10d._get_default_group() if group is None else group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.traffic = traffic or Traffic()
        self._takers: defaultdict[tuple[int, int], ThreadPoolExecutor] = defaultdict(
            lambda: ThreadPoolExecutor(1, "receive")
        )
        self._own: defaultdict[int, SimpleQueue[Tensor]] = defaultdict(SimpleQueue)  # a rank's messages to itself

    def send(self, x: Tensor, to: int, tag: int = 0) -> Request:
        self.traffic.sent_bytes += x.nbytes
        flat = _bytes(x)
        if to == self.rank:
            self._own[tag].put(flat.clone())
            return _Sent(flat, [], ())
        parts = (torch.tensor([flat.numel()]), flat) if flat.numel() else (torch.tensor([0]),)
        works = [dist.isend(part, group=self._group, tag=tag, group_dst=to) for part in parts]
        return _Sent(flat, [work for work in works if work is not None], parts)

    def receive(self, out: Tensor, source: int, tag: int = 0, *, exact: bool = True) -> Request:
        taker = self._takers[source, tag]
        return _Received(taker.submit(self._take, _bytes(out), source, tag), out.nbytes, source, exact)

    def all_reduce(self, x: Tensor, op: Op = "sum") -> None:
        self._count("all_reduce", x)
        wide = x.to(_WIDE.get(x.dtype, x.dtype))
        if x.numel():
            dist.all_reduce(wide, _OPS[op], group=self._group)
        if wide is not x:
            x.copy_(wide)

    def broadcast(self, x: Tensor, root: int = 0) -> None:
        self._count("broadcast", x, root)
        if x.numel():
            dist.broadcast(_bytes(x), group=self._group, group_src=root)

    def all_gather(self, x: Tensor, out: Tensor) -> None:
        self._count("all_gather", x)
        if x.numel():
            dist.all_gather(list(_bytes(out).view(self.size, -1)), _bytes(x), group=self._group)

    def all_to_all(self, x: Tensor, out: Tensor) -> None:
        self._count("all_to_all", x)
        if x.numel():
            dist.all_to_all_single(_bytes(out), _bytes(x), group=self._group)

    def barrier(self) -> None:
        dist.barrier(group=self._group)

    def split(self, color: int, key: int) -> "ProcessGroupTransport":
        return self.among(members_of(self, color, key), self.traffic)

    def duplicate(self) -> "ProcessGroupTransport":
        return self.among(range(self.size))

    @property
    def backend(self) -> str:
        """What carries it, as torch names it."""
        return str(dist.get_backend(self._group))

    def among(
        self, members: Sequence[int], traffic: Traffic | None = None, backend: str | None = None
    ) -> "ProcessGroupTransport":
        """Over some ranks of this one, in this order; all of them make it. By default of the same backend."""
        ranks = [dist.get_global_rank(self._group, member) for member in members]
        order: dict[str, Any] = (
            {} if ranks == sorted(ranks) else {"sort_ranks": False}
        )  # a keyword that torch 2.6 did not have
        how: dict[str, Any] = {"backend": backend or self.backend, "use_local_synchronization": True, **order}
        group: dist.ProcessGroup = dist.new_group(ranks, **how)
        return ProcessGroupTransport(group, traffic)

    def _take(self, out: Tensor, source: int, tag: int) -> int:
        """Wait for the next message of a source and tag; give its bytes. One that does not fit is taken and dropped."""
        if source == self.rank:
            message = self._own[tag].get()
        else:
            length = torch.empty(1, dtype=torch.int64)
            dist.recv(length, group=self._group, tag=tag, group_src=source)
            n = int(length)
            message = out[:n] if n <= out.numel() else torch.empty(n, dtype=torch.uint8)
            if n:
                dist.recv(message, group=self._group, tag=tag, group_src=source)
        n = message.numel()
        if n <= out.numel() and message.data_ptr() != out.data_ptr():
            out[:n] = message
        return n


def members_of(transport: Transport, color: int, key: int) -> list[int]:
    """The ranks that name the same color, ordered by (key, rank). Collective."""
    claims = torch.empty(transport.size, 2, dtype=torch.int64)
    transport.all_gather(torch.tensor([color, key]), claims)
    return [rank for _, rank in sorted((k, r) for r, (c, k) in enumerate(claims.tolist()) if c == color)]


class _Sent:
    """Keeps what is under way alive until it is."""

    def __init__(self, flat: Tensor, works: list[dist.Work], parts: Sequence[Tensor]) -> None:
        self._bytes, self._works, self._parts = flat.numel(), works, parts

    def wait(self) -> int:
        while self._works:
            try:
                self._works[0].wait()
            except RuntimeError as error:
                raise PeerError(f"a message could not be sent: {error}") from error
            self._works.pop(0)
        self._parts = ()
        return self._bytes

    def done(self) -> bool:
        return all(work.is_completed() for work in self._works)


class _Received:
    def __init__(self, taken: "Future[int]", room_bytes: int, source: int, exact: bool) -> None:
        self._taken, self._room_bytes, self._source, self._exact = taken, room_bytes, source, exact

    def wait(self) -> int:
        try:
            received_bytes = self._taken.result()
        except RuntimeError as error:
            raise PeerError(f"rank {self._source} cannot be reached: {error}") from error
        if received_bytes > self._room_bytes or (self._exact and received_bytes != self._room_bytes):
            raise PeerError(f"rank {self._source} sent {received_bytes} bytes, not {self._room_bytes}")
        return received_bytes

    def done(self) -> bool:
        return self._taken.done()


def _bytes(x: Tensor) -> Tensor:
    """x's memory, flat."""
    return x.detach().view(-1).view(torch.uint8)
