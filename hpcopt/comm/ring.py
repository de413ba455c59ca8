"""Ring all-reduce: reduce-scatter, then all-gather, each in P - 1 hops around the ranks (Patarasuk and Yuan 2009,
doi:10.1016/j.jpdc.2008.09.002).

Each rank sends ``2 (P - 1) / P`` of the tensor in all, the least possible. A chunk travels in segments, so that a
segment is added while the next is on the wire. The order of the additions is fixed by the ranks, and every rank copies
the one finished sum of each chunk: the result is bit-equal on all ranks.

Cost with latency alpha, bandwidth B and reduction rate gamma, for n bytes: ``2 (P - 1) alpha + 2 (P - 1) / P n / B + (P
- 1) / P n / gamma``.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from hpcopt.comm.transport import Op, Request, Transport, wait_all

SEGMENT_BYTES = 512 * 1024

REDUCE: dict[Op, Callable[..., Tensor]] = {"sum": torch.add, "max": torch.maximum, "min": torch.minimum}


def all_reduce(transport: Transport, x: Tensor, op: Op = "sum", *, segment_bytes: int = SEGMENT_BYTES) -> Tensor:
    """Replace x, contiguous, by its reduction over all ranks. Collective: over the transport's ranks, with x of one
    shape and dtype.

    Returns:
        x itself.
    """
    reduce_scatter(transport, x, op, segment_bytes=segment_bytes)
    return all_gather(transport, x, segment_bytes=segment_bytes)


def reduce_scatter(transport: Transport, x: Tensor, op: Op = "sum", *, segment_bytes: int = SEGMENT_BYTES) -> Tensor:
    """Reduce x so that chunk r of it (see ``chunks``) is finished on rank r; the other chunks then hold partial sums.

    Collective: over the transport's ranks. Cost: ``(P - 1) alpha + (P - 1) / P n (1 / B + 1 / gamma)``.

    Returns:
        The finished chunk, a view of x.
    """
    size, rank = transport.size, transport.rank
    grid = _segments(x, size, segment_bytes)
    columns = len(grid[0])
    steps = [(hop, k) for hop in range(size - 1) for k in range(columns)]
    buffers = [torch.empty_like(grid[0][0]) for _ in range(2)]
    sends: list[Request] = []
    receives: list[Request] = []

    def target(step: int) -> Tensor:
        hop, k = steps[step]
        return grid[(rank - hop - 2) % size][k]

    def landing(step: int) -> Tensor:
        return buffers[step % 2][: target(step).numel()]

    def post_receive(step: int) -> None:
        if step < len(steps):
            receives.append(transport.receive(landing(step), (rank - 1) % size))

    post_receive(0)
    post_receive(1)
    if size > 1:
        sends += [transport.send(segment, (rank + 1) % size) for segment in grid[(rank - 1) % size]]
    for step, (hop, _) in enumerate(steps):
        receives[step].wait()
        REDUCE[op](target(step), landing(step), out=target(step))
        post_receive(step + 2)
        if hop < size - 2:
            sends.append(transport.send(target(step), (rank + 1) % size))
    wait_all(sends)
    return chunks(x, size)[rank]


def all_gather(transport: Transport, x: Tensor, *, segment_bytes: int = SEGMENT_BYTES) -> Tensor:
    """Fill x on every rank from the chunks of it (see ``chunks``) that each rank r holds as chunk r.

    Collective: over the transport's ranks. Cost: ``(P - 1) alpha + (P - 1) / P n / B``.

    Returns:
        x itself.
    """
    size, rank = transport.size, transport.rank
    grid = _segments(x, size, segment_bytes)
    sends: list[Request] = []
    receives = [
        [transport.receive(segment, (rank - 1) % size) for segment in grid[(rank - hop - 1) % size]]
        for hop in range(size - 1)
    ]
    if size > 1:
        sends += [transport.send(segment, (rank + 1) % size) for segment in grid[rank]]
    for hop in range(size - 1):
        for segment, request in zip(grid[(rank - hop - 1) % size], receives[hop], strict=True):
            request.wait()
            if hop < size - 2:
                sends.append(transport.send(segment, (rank + 1) % size))
    wait_all(sends)
    return x


def chunks(x: Tensor, size: int) -> tuple[Tensor, ...]:
    """Cut x, flattened, into ``size`` views whose lengths differ by at most one, the longer ones first."""
    return torch.tensor_split(x.view(-1), size)


def _segments(x: Tensor, size: int, segment_bytes: int) -> list[tuple[Tensor, ...]]:
    """The chunks of x, each cut into the same number of segments; the first segment of the first chunk is longest."""
    longest_bytes = -(-x.numel() // size) * x.element_size()
    columns = max(1, -(-longest_bytes // segment_bytes))
    return [torch.tensor_split(chunk, columns) for chunk in chunks(x, size)]
