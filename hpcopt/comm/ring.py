"""Ring all-reduce: reduce-scatter, then all-gather, each in P - 1 hops around the ranks (Patarasuk and Yuan 2009,
doi:10.1016/j.jpdc.2008.09.002).

Each rank sends ``2 (P - 1) / P`` of the tensor in all, the least possible. A chunk travels in segments, so that a
segment is added while the next is on the wire. The order of the additions is fixed by the ranks, and every rank takes
the one finished sum of each chunk: the result is bit-equal on all ranks.

A float32 tensor may travel as bfloat16 or float16 (``wire``): half the bytes. Each hop adds in float32 and rounds what
it passes on; the finished sum is rounded once more, on all ranks alike.

Cost with latency alpha, bandwidth B and reduction rate gamma, for n bytes: ``2 (P - 1) alpha + 2 (P - 1) / P n / B + (P
- 1) / P n / gamma``.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from hpcopt.comm.transport import Op, Request, Transport, wait_all

SEGMENT_BYTES = 1024 * 1024

Grid = list[tuple[Tensor, ...]]  # the chunks, each cut into segments

REDUCE: dict[Op, Callable[..., Tensor]] = {"sum": torch.add, "max": torch.maximum, "min": torch.minimum}


def all_reduce(
    transport: Transport,
    x: Tensor,
    op: Op = "sum",
    *,
    wire: torch.dtype | None = None,
    segment_bytes: int = SEGMENT_BYTES,
) -> Tensor:
    """Replace x, contiguous, by its reduction over all ranks. Collective: over the transport's ranks, with x of one
    shape and dtype.

    Args:
        wire: dtype of the values under way, by default that of x.

    Returns:
        x itself.
    """
    if transport.size > 1:
        grid = _segments(x, transport.size, segment_bytes)
        _reduce_scatter(transport, grid, op, wire)
        _all_gather(transport, grid, x, wire)
    return x


def reduce_scatter(
    transport: Transport,
    x: Tensor,
    op: Op = "sum",
    *,
    wire: torch.dtype | None = None,
    segment_bytes: int = SEGMENT_BYTES,
) -> Tensor:
    """Reduce x so that chunk r of it (see ``chunks``) is finished on rank r; the other chunks then hold partial sums.

    Collective: over the transport's ranks. Cost: ``(P - 1) alpha + (P - 1) / P n (1 / B + 1 / gamma)``.

    Returns:
        The finished chunk, a view of x.
    """
    _reduce_scatter(transport, _segments(x, transport.size, segment_bytes), op, wire)
    return chunks(x, transport.size)[transport.rank]


def _reduce_scatter(transport: Transport, grid: Grid, op: Op, wire: torch.dtype | None) -> None:
    size, rank, traffic = transport.size, transport.rank, transport.traffic
    columns = len(grid[0])
    steps = [(hop, k) for hop in range(size - 1) for k in range(columns)]
    buffers = [torch.empty_like(grid[0][0], dtype=wire) for _ in range(2)]
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

    def send(segment: Tensor) -> None:
        if wire is not None:
            with traffic.encoding():
                segment = segment.to(wire)
        sends.append(transport.send(segment, (rank + 1) % size))

    post_receive(0)
    post_receive(1)
    if size > 1:
        for segment in grid[(rank - 1) % size]:
            send(segment)
    for step, (hop, _) in enumerate(steps):
        with traffic.waiting():
            receives[step].wait()
        with traffic.decoding():
            REDUCE[op](target(step), landing(step), out=target(step))
        post_receive(step + 2)
        if hop < size - 2:
            send(target(step))
    with traffic.waiting():
        wait_all(sends)


def all_gather(
    transport: Transport, x: Tensor, *, wire: torch.dtype | None = None, segment_bytes: int = SEGMENT_BYTES
) -> Tensor:
    """Fill x on every rank from the chunks of it (see ``chunks``) that each rank r holds as chunk r.

    Collective: over the transport's ranks. Cost: ``(P - 1) alpha + (P - 1) / P n / B``.

    Returns:
        x itself; with ``wire``, rounded to it on all ranks.
    """
    _all_gather(transport, _segments(x, transport.size, segment_bytes), x, wire)
    return x


def _all_gather(transport: Transport, values: Grid, x: Tensor, wire: torch.dtype | None) -> None:
    size, rank, traffic = transport.size, transport.rank, transport.traffic
    grid = values if wire is None else _segments(torch.empty_like(x, dtype=wire), size, 0, columns=len(values[0]))
    receives = [
        [transport.receive(segment, (rank - 1) % size) for segment in grid[(rank - hop - 1) % size]]
        for hop in range(size - 1)
    ]
    if wire is not None:
        with traffic.encoding():
            _copy(grid[rank], values[rank])
            _copy(values[rank], grid[rank])
    sends: list[Request] = []
    if size > 1:
        sends += [transport.send(segment, (rank + 1) % size) for segment in grid[rank]]
    for hop in range(size - 1):
        chunk = (rank - hop - 1) % size
        for k, request in enumerate(receives[hop]):
            with traffic.waiting():
                request.wait()
            if hop < size - 2:
                sends.append(transport.send(grid[chunk][k], (rank + 1) % size))
            if wire is not None:
                with traffic.decoding():
                    values[chunk][k].copy_(grid[chunk][k])
    with traffic.waiting():
        wait_all(sends)


def chunks(x: Tensor, size: int) -> tuple[Tensor, ...]:
    """Cut x, flattened, into ``size`` views whose lengths differ by at most one, the longer ones first."""
    return torch.tensor_split(x.view(-1), size)


def _segments(x: Tensor, size: int, segment_bytes: int, columns: int = 0) -> Grid:
    """The chunks of x, each cut into the same number of segments; the first segment of the first chunk is longest."""
    longest_bytes = -(-x.numel() // size) * x.element_size()
    columns = columns or max(1, -(-longest_bytes // segment_bytes))
    return [torch.tensor_split(chunk, columns) if columns > 1 else (chunk,) for chunk in chunks(x, size)]


def _copy(targets: tuple[Tensor, ...], sources: tuple[Tensor, ...]) -> None:
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)
