"""Recursive-doubling all-reduce: whole tensors swapped between partners at distance 1, 2, 4, ... (Thakur et al. 2005,
doi:10.1177/1094342005051521, 4.4).

The choice for short tensors: ``ceil(log2 P)`` messages a rank where a ring needs ``2 (P - 1)``. Both partners of a swap
compute the same two-term sum, and addition commutes, so the result is bit-equal on all ranks.

Cost: ``L (alpha + n / B + n / gamma)`` with ``L = floor(log2 P)``, and ``2 (alpha + n / B)`` more where P is not a
power of two.
"""

import torch
from torch import Tensor

from hpcopt.comm.ring import REDUCE
from hpcopt.comm.transport import Op, Transport


def all_reduce(transport: Transport, x: Tensor, op: Op = "sum") -> Tensor:
    """Replace x, contiguous, by its reduction over all ranks. Collective: over the transport's ranks, with x of one
    shape and dtype.

    Ranks beyond the largest power of two first lend their x to a partner, and at the end take the result from it.

    Returns:
        x itself.
    """
    rank, power = transport.rank, 1 << (transport.size.bit_length() - 1)
    other = torch.empty_like(x)
    if rank >= power:
        transport.send(x, rank - power).wait()
        transport.receive(x, rank - power).wait()
        return x
    guest = rank + power if rank + power < transport.size else None
    if guest is not None:
        transport.receive(other, guest).wait()
        REDUCE[op](x, other, out=x)
    distance = 1
    while distance < power:
        incoming = transport.receive(other, rank ^ distance)
        outgoing = transport.send(x, rank ^ distance)
        incoming.wait()
        outgoing.wait()
        REDUCE[op](x, other, out=x)
        distance *= 2
    if guest is not None:
        transport.send(x, guest).wait()
    return x


def planned_bytes(values_bytes: int, size: int, rank: int) -> int:
    """Bytes that a rank sends: the tensor once at each distance, and once more between a guest and its host."""
    power = 1 << (size.bit_length() - 1)
    if rank >= power:
        return values_bytes
    return values_bytes * (power.bit_length() - 1 + (rank + power < size))
