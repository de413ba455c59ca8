"""Horovod as a transport: its dense collectives, with NCCL on GPUs where it was built so. It has no point-to-point
messages and no subgroups.
"""

import itertools
from typing import NoReturn

import horovod.torch as hvd
import torch
from torch import Tensor

from hpcopt.comm.mpi import abort
from hpcopt.comm.traffic import Traffic
from hpcopt.comm.transport import Op, Transport

_REDUCIBLE = (torch.float16, torch.float32, torch.float64, torch.int32, torch.int64)
_OPS = {"sum": hvd.Sum, "max": hvd.Max, "min": hvd.Min}


class HorovodTransport(Transport):
    """All ranks that Horovod knows. Every operation gets a name by its place in the program, which is the same on all
    ranks.
    """

    name = "horovod"

    def __init__(self, channel: str = "hpcopt") -> None:
        """Join the others; operations of different channels may run in different orders on different ranks."""
        hvd.init()
        self.rank = hvd.rank()
        self.size = hvd.size()
        self.traffic = Traffic()
        self._order, self._duplicates = itertools.count(), itertools.count()
        self._channel = channel

    def all_reduce(self, x: Tensor, op: Op = "sum") -> None:
        if x.dtype == torch.bfloat16:
            wide = x.float()
            self.all_reduce(wide, op)
            x.copy_(wide)
            return
        if x.dtype not in _REDUCIBLE:
            self._refuse(f"all_reduce of {x.dtype}")
        self._count("all_reduce", x)
        if x.numel():
            hvd.allreduce_(x, op=_OPS[op], name=self._next("all_reduce"))

    def broadcast(self, x: Tensor, root: int = 0) -> None:
        self._count("broadcast", x, root)
        if x.numel():
            hvd.broadcast_(_bytes(x), root, name=self._next("broadcast"))

    def all_gather(self, x: Tensor, out: Tensor) -> None:
        self._count("all_gather", x)
        if x.numel():
            received = hvd.allgather(_bytes(x).unsqueeze(0), name=self._next("all_gather"))
            _bytes(out).copy_(received.view(-1))

    def all_to_all(self, x: Tensor, out: Tensor) -> None:
        self._count("all_to_all", x)
        if x.numel():
            one_each = torch.ones(self.size, dtype=torch.int32)
            rows = _bytes(x).view(self.size, -1)
            received, _ = hvd.alltoall(rows, one_each, name=self._next("all_to_all"))
            _bytes(out).copy_(received.view(-1))

    def duplicate(self) -> "HorovodTransport":
        return HorovodTransport(f"{self._channel}.{next(self._duplicates)}")

    def abort(self, exit_code: int) -> NoReturn:
        abort(exit_code)

    def close(self) -> None:
        """Stop Horovod's background thread on all ranks together: it must not meet an MPI that a faster rank has
        already finalized. All transports of a rank share the thread: the first that closes stops it.
        """
        if hvd.is_initialized():
            self.barrier()
            hvd.shutdown()

    def _next(self, what: str) -> str:
        return f"{self._channel}.{what}.{next(self._order)}"


def _bytes(x: Tensor) -> Tensor:
    """x's memory, flat: Horovod moves bytes, and knows few other dtypes."""
    return x.detach().view(-1).view(torch.uint8)
