"""mpi4py as a transport: buffers only, never pickled objects, so counts may pass 2**31 and nothing is copied twice.

Where MPI takes a GPU's memory (``hpcopt.comm.gpu_aware``), what the current stream was given is done before MPI is
called. Open MPI's collectives that return at once take main memory only, so those that wait are called.
"""

import os
import time
from functools import cache
from typing import Any, NoReturn

import torch
from mpi4py import MPI
from torch import Tensor

from hpcopt.comm.launch import hand_over_output
from hpcopt.comm.traffic import Traffic
from hpcopt.comm.transport import LINE_BYTES, SHARED_BYTES, Op, Request, SharedMemory, Transport
from hpcopt.errors import PeerError, UnsupportedError
from hpcopt.pinned import passed

_SHORT = (torch.bfloat16, torch.float16)
_EAGER_S, _NAP_PART, _LONGEST_NAP_S = 3e-4, 1 / 16, 1e-3  # of a rank that waits for a message from anybody
_OPS = {"sum": MPI.SUM, "max": MPI.MAX, "min": MPI.MIN}


class MpiTransport(Transport):
    """All ranks of an MPI communicator of our own, so that other libraries' messages cannot meet ours."""

    name = "mpi"
    point_to_point = True

    def __init__(
        self,
        communicator: MPI.Intracomm | None = None,
        traffic: Traffic | None = None,
        *,
        host_memory_only: bool = True,
    ) -> None:
        """Take over ``communicator``, by default a duplicate of all ranks."""
        self._comm = communicator or MPI.COMM_WORLD.Dup()
        self.host_memory_only = host_memory_only
        self.rank = self._comm.rank
        self.size = self._comm.size
        self.traffic = traffic or Traffic()
        self.threaded = MPI.Query_thread() == MPI.THREAD_MULTIPLE
        self._derived: list[MpiTransport] = []
        self._shared: _Window | None = None
        self._one_node: bool | None = None  # not asked yet

    def send(self, x: Tensor, to: int, tag: int = 0) -> Request:
        self.traffic.sent_bytes += x.numel() * x.element_size()
        return _MpiRequest(self._comm.Isend(self._bytes(x), to, tag), x, None, to)

    def receive(self, out: Tensor, source: int, tag: int = 0, *, exact: bool = True) -> Request:
        expected = out.numel() * out.element_size() if exact else None
        return _MpiRequest(self._comm.Irecv(self._bytes(out), source, tag), out, expected, source)

    def take(self, tag: int = 0, *, wait: bool = False) -> tuple[int, Tensor] | None:
        status, begun_s = MPI.Status(), time.monotonic()
        while (message := self._comm.Improbe(MPI.ANY_SOURCE, tag, status)) is None:
            if not wait:
                return None
            if (waited_s := time.monotonic() - begun_s) < _EAGER_S:
                os.sched_yield()
            else:  # nobody knows for how long: who has the core is not to be woken from it too often
                time.sleep(min(_NAP_PART * waited_s, _LONGEST_NAP_S))
        out = torch.empty(status.Get_count(MPI.BYTE), dtype=torch.uint8)
        message.Recv(self._bytes(out))
        return status.Get_source(), out

    def all_reduce(self, x: Tensor, op: Op = "sum") -> None:
        if x.dtype in _SHORT:  # MPI does not know them
            wide = x.float()
            self.all_reduce(wide, op)
            x.copy_(wide)
            return
        self._count("all_reduce", x)
        self._comm.Allreduce(MPI.IN_PLACE, [self._bytes(x), _type(x.dtype)], _OPS[op])

    def broadcast(self, x: Tensor, root: int = 0) -> None:
        self._count("broadcast", x, root)
        if x.is_cpu:
            _poll(self._comm.Ibcast(self._bytes(x), root))
        else:
            self._comm.Bcast(self._bytes(x), root)

    def all_gather(self, x: Tensor, out: Tensor) -> None:
        self._count("all_gather", x)
        if x.is_cpu:
            _poll(self._comm.Iallgather(self._bytes(x), self._bytes(out)))
        else:
            self._comm.Allgather(self._bytes(x), self._bytes(out))

    def all_to_all(self, x: Tensor, out: Tensor) -> None:
        self._count("all_to_all", x)
        self._comm.Alltoall(self._bytes(x), self._bytes(out))

    def sums(self, x: Tensor) -> bool:
        return not x.is_cpu

    def barrier(self) -> None:
        _poll(self._comm.Ibarrier())

    @property
    def communicator(self) -> MPI.Comm:
        return self._comm

    def split(self, color: int, key: int) -> "MpiTransport":
        return self._keep(MPI.Intracomm(self._comm.Split(color, key)), self.traffic)

    def duplicate(self) -> "MpiTransport":
        return self._keep(self._comm.Dup())

    def _keep(self, communicator: MPI.Intracomm, traffic: Traffic | None = None) -> "MpiTransport":
        part = MpiTransport(communicator, traffic, host_memory_only=self.host_memory_only)
        self._derived.append(part)
        return part

    def _bytes(self, x: Tensor) -> MPI.buffer:
        """x's memory as bytes: a tenth of the time that a view by way of numpy takes, which would know no bfloat16."""
        if not x.is_cpu:
            if self.host_memory_only:
                raise UnsupportedError(
                    f"MPI reaches main memory only, not {x.device}: call comm.device.use_device first"
                )
            passed(x.device).synchronize()
        if not x.is_contiguous():
            raise ValueError(f"a tensor of shape {tuple(x.shape)} and strides {x.stride()} is not contiguous")
        return MPI.buffer.fromaddress(x.data_ptr(), x.numel() * x.element_size())

    def shared_memory(self) -> SharedMemory | None:
        if self._one_node is None:
            node = self._comm.Split_type(MPI.COMM_TYPE_SHARED)
            self._one_node = node.size == self.size > 1
            node.Free()
            if self._one_node:
                self._shared = _Window(self._comm)
        return self._shared

    def abort(self, exit_code: int) -> NoReturn:
        abort(exit_code)

    def close(self) -> None:
        """With all that was split or duplicated from it: MPI does not end in order while one of them has a window."""
        if self._comm == MPI.COMM_NULL:
            return
        for part in self._derived:
            part.close()
        self.barrier()
        if self._shared is not None:
            self._shared.free()
        self._comm.Free()


def abort(exit_code: int) -> NoReturn:
    """End every rank of the job at once."""
    hand_over_output()
    MPI.COMM_WORLD.Abort(exit_code)
    os._exit(exit_code)  # under srun, MPICH only asks SLURM to end the job, and returns


class _Window:
    """A window of MPI that every rank has mapped. The last line of a rank's memory counts the meetings it came to."""

    def __init__(self, comm: MPI.Intracomm) -> None:
        self._comm = comm
        self._window = MPI.Win.Allocate_shared(SHARED_BYTES + LINE_BYTES, 1, comm=comm)
        memories = [self._window.Shared_query(rank)[0] for rank in range(comm.size)]
        self.parts = [torch.frombuffer(memory, dtype=torch.uint8, count=SHARED_BYTES) for memory in memories]
        self.plans: dict[Any, Any] = {}
        self._counts = [memory.cast("q")[SHARED_BYTES // 8 :] for memory in memories]
        self._window.Lock_all(MPI.MODE_NOCHECK)
        self._meetings = self._counts[comm.rank][0] = 0
        self._window.Sync()
        comm.Barrier()

    def meet(self) -> None:
        """A quarter of the time of MPI's barrier, which is one round of messages after the other."""
        self._meetings += 1
        self._window.Sync()  # what was written before is there before the count
        self._counts[self._comm.rank][0] = self._meetings
        for count in self._counts:
            while count[0] < self._meetings:
                self._comm.Iprobe()  # messages of other threads move on meanwhile
                os.sched_yield()
        self._window.Sync()

    def free(self) -> None:
        self._window.Unlock_all()
        self._window.Free()


class _MpiRequest:
    def __init__(self, request: MPI.Request, x: Tensor, expected_bytes: int | None, peer: int) -> None:
        self._request, self._expected_bytes, self._peer = request, expected_bytes, peer
        self._x = x  # MPI knows its address only
        self._status: MPI.Status | None = None  # of a message that has come

    def wait(self) -> int:
        try:
            self._status = self._status or _poll(self._request)
        except MPI.Exception as error:
            if error.Get_error_class() != MPI.ERR_TRUNCATE:
                raise
            room_bytes = self._x.numel() * self._x.element_size()
            raise PeerError(f"rank {self._peer} sent more than {room_bytes} bytes") from None
        received_bytes: int = self._status.Get_count(MPI.BYTE)
        if self._expected_bytes not in (None, received_bytes):
            raise PeerError(f"rank {self._peer} sent {received_bytes} bytes, not {self._expected_bytes}")
        return received_bytes

    def done(self) -> bool:
        status = MPI.Status()
        if self._status is None and self._request.Test(status):
            self._status = status
        return self._status is not None


def _poll(request: MPI.Request) -> MPI.Status:
    """Wait, and give the core away meanwhile: MPI's own wait spins, which starves the awaited rank where ranks share
    cores.
    """
    status = MPI.Status()
    while not request.Test(status):
        os.sched_yield()
    return status


@cache
def _type(dtype: torch.dtype) -> MPI.Datatype:
    """MPI's word for a dtype."""
    return MPI.Datatype.fromcode(torch.empty(0, dtype=dtype).numpy().dtype.char)
