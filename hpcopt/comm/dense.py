"""Which of our all-reduces a tensor takes: recursive doubling where latency counts, the ring where bandwidth does, and
the ring's sums by way of memory where all ranks share it; or the transport's own, where it has better ones. What is to
be copied to main memory is copied once.
"""

import torch
from torch import Tensor

from hpcopt.comm import doubling, ring, shared
from hpcopt.comm.staged import StagedTransport
from hpcopt.comm.traffic import dense_all_reduce_bytes
from hpcopt.comm.transport import Op, Transport

SHORT_BYTES = 64 * 1024  # below this, latency counts and not bandwidth


def all_reduce(transport: Transport, x: Tensor, op: Op = "sum", *, wire: torch.dtype | None = None) -> Tensor:
    """Replace x, contiguous, by its reduction over all ranks, bit-equal on all of them; give x back. Collective.

    A long tensor may travel as a shorter dtype, ``wire``; a short one travels as it is.
    """
    if transport.size == 1:
        return x
    if transport.sums(x):
        transport.all_reduce(x, op)
        return x
    if isinstance(transport, StagedTransport) and not transport.carries(x):
        with transport.in_main_memory(x) as (inner, host):
            all_reduce(inner, host, op, wire=wire)
        return x
    if x.numel() * x.element_size() < SHORT_BYTES:
        return doubling.all_reduce(transport, x, op)
    return long(transport, x, op, wire=wire)


def long(transport: Transport, x: Tensor, op: Op = "sum", *, wire: torch.dtype | None = None) -> Tensor:
    """As ``ring.all_reduce``, bit for bit; by way of memory if all ranks share it. Collective."""
    memory = transport.shared_memory() if wire is None else None
    if memory is None:
        return ring.all_reduce(transport, x, op, wire=wire)
    return shared.all_reduce(transport, memory, x, op)


def planned_bytes(values_bytes: int, size: int, rank: int) -> int:
    """Bytes that a rank sends for the sum of a tensor; around the ring, to a few values where P does not divide it."""
    if values_bytes < SHORT_BYTES:
        return doubling.planned_bytes(values_bytes, size, rank)
    return dense_all_reduce_bytes(values_bytes, size)
