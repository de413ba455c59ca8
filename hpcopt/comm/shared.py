"""All-reduce of ranks that share memory: each copies the others' chunks to where they can read them, sums its own, and
takes the others' sums.

Chunks, segments and the order of additions are the ring's (``hpcopt.comm.ring``), and so are the bits of the result, on
every rank. What differs is the way: one meeting of all ranks a segment and two copies of a value, where messages of the
ring are copied at both their ends, and 2 (P - 1) of them wait for each other.

A segment's parts fill one half of each rank's memory while those of the segment before are summed in the other half, so
that one meeting says both that the parts are there and that the sums are.

Copies are numpy's, that is the C library's: on current processors they claim whole lines. The vector stores of torch's
copies and sums wait, where another core has read a line, until that one has given it up: five times as long.

Cost of n bytes in s segments, with alpha for a meeting, and rates mu of copying and gamma of adding: ``(s + 1) alpha +
(P - 1) / P n (2 / mu + 1 / gamma) + n / (P mu)``.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpcopt.comm import ring
from hpcopt.comm.shards import longest, shards
from hpcopt.comm.transport import LINE_BYTES, Op, SharedMemory, Transport
from hpcopt.errors import PeerError

HEADER_BYTES = 64  # what a rank is about to reduce
PLANS = 64  # kept for tensors that come again

Bytes = NDArray[np.uint8]


def all_reduce(transport: Transport, memory: SharedMemory, x: Tensor, op: Op = "sum") -> Tensor:
    """Replace x, contiguous, by its reduction over all ranks. Collective: over the transport's ranks, with x of one
    shape and dtype.

    What the others read of a rank counts as sent: as many bytes as around the ring.

    Returns:
        x itself.

    Raises:
        PeerError: another rank is about to reduce a tensor of another size or dtype, or by another op.
    """
    size, rank, traffic = transport.size, transport.rank, transport.traffic
    if size == 1:
        return x
    plan = _plan(memory, rank, size, x, op)
    values, own = _bytes(x), x.view(-1)[plan.own]
    with traffic.waiting():
        np.copyto(plan.headers[rank], plan.header)
        _copy_in(plan.segments[0].parts, values)
        memory.meet()
    _require_same(plan)
    for segment, following in zip(plan.segments, [*plan.segments[1:], None], strict=True):
        with traffic.decoding():
            _reduce(segment, own[segment.own], plan.reduce)
        with traffic.waiting():
            _copy_in([segment.sum], values)
            if following is not None:
                _copy_in(following.parts, values)
            memory.meet()
            for where, room in segment.sums:
                np.copyto(values[where], room)
    traffic.sent_bytes += ((size - 2) * len(own) + x.numel()) * x.element_size()
    return x


Place = tuple[slice, Bytes]  # bytes of x, and the room in some rank's memory that they go through


@dataclass
class _Segment:
    """Where a segment's values lie.

    Attributes:
        own: of this rank's chunk, to be summed here.
        parts: the others' values, in this rank's memory.
        sources: this rank's values, in the others' memory.
        partial: for sums of some of them, if there are more than two ranks.
        sum: this rank's values, summed, in its own memory.
        sums: the others' values, summed, in theirs.
    """

    own: slice
    parts: list[Place]
    sources: list[Tensor]
    partial: Tensor
    sum: Place
    sums: list[Place]


@dataclass
class _Plan:
    """How tensors of one size and dtype go through the memory.

    Attributes:
        own: this rank's chunk.
        header: what this rank is about to reduce.
        headers: what each rank is about to reduce, in its memory.
    """

    own: slice
    header: Bytes
    headers: list[Bytes]
    segments: list[_Segment]
    reduce: Callable[..., Tensor]


def _plan(memory: SharedMemory, rank: int, size: int, x: Tensor, op: Op) -> _Plan:
    """The plan for x, made once: half of a short reduction's time would be spent on it."""
    key = (x.numel(), x.dtype, op)
    if key not in memory.plans:
        if len(memory.plans) >= PLANS:
            memory.plans.clear()
        memory.plans[key] = _make_plan(memory, rank, size, *key)
    plan: _Plan = memory.plans[key]
    return plan


def _make_plan(memory: SharedMemory, rank: int, size: int, n: int, dtype: torch.dtype, op: Op) -> _Plan:
    width, room = dtype.itemsize, slot_bytes(memory.parts[0].numel(), size)
    chunks = shards(n, size)
    columns = max(1, -(-longest(chunks) * width // room))
    cuts = [shards(chunk.stop - chunk.start, columns) for chunk in chunks]
    others = [(rank + distance) % size for distance in range(1, size)]
    rooms = [_bytes(part) for part in memory.parts]
    partial = torch.empty(longest(cuts[rank]) if size > 2 else 0, dtype=dtype)

    def slot(k: int, place: int, chunk: int) -> slice:
        """Bytes of a rank's memory, for segment k of a chunk: its part, at the place of the chunk's owner, or, at
        place P, the finished sum.
        """
        begin = HEADER_BYTES + (k % 2 * (size + 1) + place) * room
        return slice(begin, begin + (cuts[chunk][k].stop - cuts[chunk][k].start) * width)

    def where(k: int, chunk: int) -> slice:
        """Bytes of x."""
        start = chunks[chunk].start
        return slice((start + cuts[chunk][k].start) * width, (start + cuts[chunk][k].stop) * width)

    segments = [
        _Segment(
            own=cuts[rank][k],
            parts=[(where(k, owner), rooms[rank][slot(k, owner, owner)]) for owner in others],
            sources=[memory.parts[source][slot(k, rank, rank)].view(dtype) for source in others],
            partial=partial[: cuts[rank][k].stop - cuts[rank][k].start],
            sum=(where(k, rank), rooms[rank][slot(k, size, rank)]),
            sums=[(where(k, owner), rooms[owner][slot(k, size, owner)]) for owner in others],
        )
        for k in range(columns)
    ]
    header = np.frombuffer(f"{op} of {n} x {dtype}".encode().ljust(HEADER_BYTES), np.uint8)
    return _Plan(chunks[rank], header, [room[:HEADER_BYTES] for room in rooms], segments, ring.REDUCE[op])


def _copy_in(places: list[Place], values: Bytes) -> None:
    for where, room in places:
        np.copyto(room, values[where])


def _reduce(segment: _Segment, mine: Tensor, reduce: Callable[..., Tensor]) -> None:
    """Add the others' values to this rank's, those of the next rank first, as on the ring."""
    total = segment.sources[0]
    for source in segment.sources[1:]:
        total = reduce(source, total, out=segment.partial)
    reduce(mine, total, out=mine)


def slot_bytes(memory_bytes: int, size: int) -> int:
    """Room of one part in a rank's memory: it has, twice, one for each rank and one for a sum."""
    return (memory_bytes - HEADER_BYTES) // (2 * (size + 1)) // LINE_BYTES * LINE_BYTES


def _bytes(x: Tensor) -> Bytes:
    array: Bytes = x.view(-1).view(torch.uint8).numpy()
    return array


def _require_same(plan: _Plan) -> None:
    mine = plan.header.tobytes()
    for rank, header in enumerate(plan.headers):
        theirs = header.tobytes()
        if theirs != mine:
            raise PeerError(f"rank {rank} brought {theirs.decode().rstrip()}, not {mine.decode().rstrip()}")
