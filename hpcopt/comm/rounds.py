"""Drives compressors that work in rounds of plain reductions (PowerSGD, shared scales, shared places, linear codecs).

Payloads that may be summed on the way ride the ring or, when they are short, recursive doubling; nothing is quantised
again at a hop, but for half-precision payloads, which each hop adds in float32 and rounds.
"""

import torch
from torch import Tensor

from hpcopt.comm import doubling, ring
from hpcopt.comm.traffic import dense_all_reduce_bytes
from hpcopt.comm.transport import Transport
from hpcopt.compress import Layout, Reduction, RoundCompressor

SHORT_BYTES = 64 * 1024  # below this, latency counts and not bandwidth


def all_reduce(transport: Transport, x: Tensor, compressor: RoundCompressor, layout: Layout, *, seed: int) -> Tensor:
    """Replace x, flat, float32, by (nearly) its sum over all ranks, bit-equal on all of them.

    Collective: over the transport's ranks. Cost: that of each round's reduction, one after the other.

    Args:
        layout: the parameters that x holds, in order.
        seed: as the compressor asks for: the same on all ranks if ``compressor.shared_seed``.

    Returns:
        x itself. With one rank nothing travels, and nothing is lost.
    """
    if transport.size == 1:
        return x
    rounds = compressor.rounds(x, layout, seed=seed)
    while True:
        with transport.traffic.encoding():
            reduction = next(rounds, None)
        if reduction is None:
            return x
        reduce(transport, reduction)


def reduce(transport: Transport, reduction: Reduction) -> None:
    """Perform one reduction in place. Collective."""
    op, x = reduction
    if op == "broadcast":
        transport.broadcast(x)
    elif x.numel() * x.element_size() < SHORT_BYTES:
        doubling.all_reduce(transport, x, op)
    else:
        ring.all_reduce(transport, x, op)


def planned_bytes(values_bytes: int, size: int, rank: int) -> int:
    """Bytes that a rank sends for the sum of a tensor; around the ring, to a few values where P does not divide it."""
    if values_bytes < SHORT_BYTES:
        return doubling.planned_bytes(values_bytes, size, rank)
    return dense_all_reduce_bytes(values_bytes, size)


def dense_all_reduce(transport: Transport, x: Tensor, wire: torch.dtype | None = None) -> Tensor:
    """Sum x over all ranks in place: short tensors by recursive doubling as they are, others around the ring."""
    if x.numel() * x.element_size() < SHORT_BYTES:
        return doubling.all_reduce(transport, x)
    return ring.all_reduce(transport, x, wire=wire)
