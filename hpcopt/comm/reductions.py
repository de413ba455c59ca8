"""Drives compressors that work in rounds of plain reductions (PowerSGD, shared scales, shared places, linear codecs).

Payloads that may be summed on the way ride the ring or, when they are short, recursive doubling; nothing is quantised
again at a hop, but for half-precision payloads, which each hop adds in float32 and rounds.
"""

from torch import Tensor

from hpcopt.comm import dense
from hpcopt.comm.transport import Transport
from hpcopt.compress import Layout, Reduction, RoundCompressor


def all_reduce(transport: Transport, x: Tensor, compressor: RoundCompressor, layout: Layout, *, seed: int) -> Tensor:
    """Replace x, flat, float32, by (nearly) its sum over all ranks, bit-equal on all of them.

    Collective: over the transport's ranks. Cost: that of each round's reduction, one after the other.

    Args:
        layout: the parameters that x holds, in order.
        seed: as the compressor asks for: the same on all ranks if ``compressor.shared_seed``.

    Returns:
        x itself. With one rank nothing travels, and nothing is lost; what more ranks left owing is paid.
    """
    if transport.size == 1:
        compressor.settle(x, layout)
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
    else:
        dense.all_reduce(transport, x, op)
