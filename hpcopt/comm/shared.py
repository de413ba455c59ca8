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

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpcopt.comm import ring
from hpcopt.comm.shards import longest, shards
from hpcopt.comm.transport import Op, SharedMemory, Transport
from hpcopt.errors import PeerError

HEADER_BYTES = 64  # what a rank is about to reduce
LINE_BYTES = 64  # of a cache; parts begin with one

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
    size, rank, traffic, reduce = transport.size, transport.rank, transport.traffic, ring.REDUCE[op]
    if size == 1:
        return x
    width, room = x.element_size(), slot_bytes(memory.parts[0].numel(), size)
    chunks = shards(x.numel(), size)
    columns = max(1, -(-longest(chunks) * width // room))
    segments = [shards(chunk.stop - chunk.start, columns) for chunk in chunks]
    others = [(rank + distance) % size for distance in range(1, size)]
    values, rooms = _bytes(x), [_bytes(part) for part in memory.parts]
    own = x.view(-1)[chunks[rank]]
    partial = own.new_empty(longest(segments[rank]) if size > 2 else 0)
    header = f"{op} of {x.numel()} x {x.dtype}".encode().ljust(HEADER_BYTES)

    def slot(k: int, place: int, chunk: int) -> slice:
        """Bytes of a rank's memory, for segment k of a chunk: its part, at the place of the chunk's owner, or, at
        place P, the finished sum.
        """
        begin = HEADER_BYTES + (k % 2 * (size + 1) + place) * room
        return slice(begin, begin + (segments[chunk][k].stop - segments[chunk][k].start) * width)

    def where(k: int, chunk: int) -> slice:
        """Bytes of x."""
        start = chunks[chunk].start
        return slice((start + segments[chunk][k].start) * width, (start + segments[chunk][k].stop) * width)

    def bring(k: int) -> None:
        for owner in others:
            np.copyto(rooms[rank][slot(k, owner, owner)], values[where(k, owner)])

    with traffic.waiting():
        rooms[rank][:HEADER_BYTES] = np.frombuffer(header, np.uint8)
        bring(0)
        memory.meet()
    _require_same(rooms, header)
    for k, segment in enumerate(segments[rank]):
        with traffic.decoding():
            mine, part = own[segment], slot(k, rank, rank)
            total = memory.parts[others[0]][part].view(x.dtype)
            for source in others[1:]:
                total = reduce(memory.parts[source][part].view(x.dtype), total, out=partial[: len(mine)])
            reduce(mine, total, out=mine)
        with traffic.waiting():
            np.copyto(rooms[rank][slot(k, size, rank)], values[where(k, rank)])
            if k + 1 < columns:
                bring(k + 1)
            memory.meet()
            for owner in others:
                np.copyto(values[where(k, owner)], rooms[owner][slot(k, size, owner)])
    traffic.sent_bytes += ((size - 2) * len(own) + x.numel()) * width
    return x


def slot_bytes(memory_bytes: int, size: int) -> int:
    """Room of one part in a rank's memory: it has, twice, one for each rank and one for a sum."""
    return (memory_bytes - HEADER_BYTES) // (2 * (size + 1)) // LINE_BYTES * LINE_BYTES


def _bytes(x: Tensor) -> Bytes:
    array: Bytes = x.view(-1).view(torch.uint8).numpy()
    return array


def _require_same(rooms: list[Bytes], mine: bytes) -> None:
    for rank, room in enumerate(rooms):
        theirs = room[:HEADER_BYTES].tobytes()
        if theirs != mine:
            raise PeerError(f"rank {rank} brought {theirs.decode().rstrip()}, not {mine.decode().rstrip()}")
