"""Collectives of ragged pieces, each a message of its own: for state that is sharded by what it is, not evenly."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hpcopt.comm.transport import Transport, wait_all


def exchange(
    transport: Transport, outgoing: Sequence[tuple[Tensor, int]], incoming: Sequence[tuple[Tensor, int]]
) -> None:
    """Send contiguous tensors to ranks, and receive into others from ranks; empty ones do not travel.

    Collective: over the ranks named, whose lists must match in order, pair by pair. Cost: the messages' alpha, and the
    bytes of the busiest rank / B.
    """
    requests = [transport.receive(x, source) for x, source in incoming if x.numel()]
    requests += [transport.send(x, to) for x, to in outgoing if x.numel()]
    wait_all(requests)


def gather(transport: Transport, x: Tensor, lengths: Sequence[int]) -> list[Tensor]:
    """Give rank 0 all ranks' tensors, of one dtype and shapes (lengths[r],); other ranks get none.

    Collective: over the transport's ranks. Cost: ``alpha + n / B`` of a rank, P - 1 times that of rank 0.
    """
    if transport.rank > 0:
        exchange(transport, [(x, 0)], [])
        return []
    parts = [x, *(x.new_empty(length) for length in lengths[1:])]
    exchange(transport, [], [(part, rank) for rank, part in enumerate(parts) if rank > 0])
    return parts


def reduce_to_owners(
    transport: Transport, x: Tensor, lengths: Sequence[int], wire_dtype: torch.dtype | None = None
) -> Tensor:
    """Sum x, shape (sum of lengths,), over ranks, each segment at one rank: segment r, of lengths[r] values, at rank r.

    Collective: over the transport's ranks. Cost: ``(P - 1) alpha + (n - own) / B``, half of an all-reduce. The sum is
    taken in x's dtype and in rank order, so its bits do not depend on who is quick.

    Args:
        transport: the ranks.
        x: contiguous; its own segment is overwritten by the sum.
        lengths: of all segments, the same on all ranks.
        wire_dtype: what values are rounded to on the way; None: x's own.

    Returns:
        The own segment, a view of x.
    """
    dtype = wire_dtype or x.dtype
    segments: tuple[Tensor, ...] = torch.split(x, list(lengths))
    own = segments[transport.rank]
    others = [rank for rank in range(transport.size) if rank != transport.rank]
    sent = [(segments[rank].to(dtype), rank) for rank in others]
    landing = [own.new_empty(own.numel() if others else 0, dtype=dtype) for _ in others]
    exchange(transport, sent, list(zip(landing, others, strict=True)))
    parts = dict(zip(others, landing, strict=True))
    if others:
        parts[transport.rank] = own.clone()
        own.zero_()
        for rank in range(transport.size):
            own.add_(parts[rank])
    return own
