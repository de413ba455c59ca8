"""All-reduce of float32 values that are rounded to one grid, in as many bits as their integers need.

Every rank owns one shard. Phase 1: each other rank sends it that shard's integers, packed; the owner adds them to its
own. Phase 2: the owner sends the packed sum to all. The integers' sum is exact, so its bits depend neither on who owns
what nor on the order of arrival; a ring would give the same bits, and send partial sums, which are longer than what
they are sums of.

Cost for n bytes that shrink r times, and s times as sums, with kernels at e and u: ``2 (P - 1) alpha + (P - 1) / P n
(1 / r + 1 / s) / B + n / e + 2 n / u``.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpcopt import kernels
from hpcopt.comm.shards import longest, shards
from hpcopt.comm.transport import Request, Transport, wait_all
from hpcopt.compress.bounded import Grid
from hpcopt.compress.codec import Bytes, float_array
from hpcopt.errors import PayloadError

BLOCK = 64  # integers that share a width

Integers = NDArray[np.int32]


def all_reduce(transport: Transport, x: Tensor, grid: Grid) -> Tensor:
    """Replace x, shape (n,), float32, contiguous, finite, by the sum over all ranks of its values on the grid.

    Collective: over the transport's ranks, with one n and grid.

    Returns:
        x itself. With one rank nothing travels, and nothing is rounded.

    Raises:
        PayloadError: another rank sent something else.
    """
    if transport.size == 1:
        return x
    values, per_step = float_array(x), 1 / grid.step

    def packed(stretch: slice) -> Tensor:
        shard = values[stretch]
        room = room_for(shard.size, grid.own_bits)
        return room[: kernels.grid.encode(shard, per_step, room.numpy())]

    return _summed(transport, x, grid, grid.own_bits, packed, lambda own: kernels.grid.quantise(values[own], per_step))


def sum_integers(transport: Transport, integers: Integers, x: Tensor, grid: Grid) -> Tensor:
    """Replace x, shape (n,), float32, contiguous, by the sum over all ranks of integers on the grid, int32, as
    ``kernels.grid.quantise`` gives them, which are used up. Collective: over the transport's ranks, with one n and
    grid; every partial sum fits into the grid's ``sum_bits``.

    Returns:
        x itself, of one rank's integers, too.

    Raises:
        PayloadError: another rank sent something else.
    """

    def packed(stretch: slice) -> Tensor:
        return _packed(integers[_blocks(stretch)], stretch, grid)

    return _summed(transport, x, grid, grid.sum_bits, packed, lambda own: integers[_blocks(own)])


def _summed(
    transport: Transport,
    x: Tensor,
    grid: Grid,
    bits: int,
    packed: Callable[[slice], Tensor],
    integers: Callable[[slice], Integers],
) -> Tensor:
    """Both phases.

    Args:
        bits: that a rank's own integers need at most.
        packed: gives this rank's integers of another one's stretch, as they travel.
        integers: gives those of its own, once all others are on their way.
    """
    size, rank, traffic = transport.size, transport.rank, transport.traffic
    values, stretches = float_array(x), shards(x.numel(), size, BLOCK)
    own = stretches[rank].stop - stretches[rank].start
    others = [(rank + distance) % size for distance in range(1, size)]
    sources = [(rank - distance) % size for distance in range(1, size)]
    landing = {source: room_for(own, bits) for source in sources}
    receives = {source: transport.receive(landing[source], source, exact=False) for source in sources}
    sends: list[Request] = []
    for owner in others:
        with traffic.encoding():
            payload = packed(stretches[owner])
        sends.append(transport.send(payload, owner))
    with traffic.encoding():
        total = integers(stretches[rank])
    for source in sources:
        with traffic.waiting():
            received_bytes = receives[source].wait()
        with traffic.decoding():
            kernels.grid.add(_whole(landing[source][:received_bytes], own), total)

    landing = {source: room_for(longest(stretches), grid.sum_bits) for source in sources}
    receives = {source: transport.receive(landing[source], source, exact=False) for source in sources}
    with traffic.encoding():
        payload = _packed(total, stretches[rank], grid)
    sends += [transport.send(payload, other) for other in others]
    with traffic.decoding():
        kernels.grid.decode(payload.numpy(), grid.step, values[stretches[rank]])
    for source in sources:
        with traffic.waiting():
            received_bytes = receives[source].wait()
        with traffic.decoding():
            part = values[stretches[source]]
            kernels.grid.decode(_whole(landing[source][:received_bytes], part.size), grid.step, part)
    with traffic.waiting():
        wait_all(sends)
    return x


def _packed(integers: Integers, stretch: slice, grid: Grid) -> Tensor:
    """The payload of a stretch's integers, which are filled up with zeros to whole blocks."""
    n = stretch.stop - stretch.start
    room = room_for(n, grid.sum_bits)
    return room[: kernels.grid.pack(integers, n, room.numpy())]


def _blocks(stretch: slice) -> slice:
    """Where a stretch's integers are, with the zeros behind them."""
    return slice(stretch.start, stretch.start + -(-(stretch.stop - stretch.start) // BLOCK) * BLOCK)


def planned_bytes(n: int, size: int, rank: int, grid: Grid) -> int:
    """The most bytes that a rank sends for n values."""
    lengths = [s.stop - s.start for s in shards(n, size, BLOCK)]
    others = sum(most_bytes(length, grid.own_bits) for owner, length in enumerate(lengths) if owner != rank)
    return others + (size - 1) * most_bytes(lengths[rank], grid.sum_bits) if size > 1 else 0


def most_bytes(n: int, bits: int) -> int:
    """Of a payload of n integers of so many bits or fewer."""
    blocks = -(-n // BLOCK)
    return -(-blocks // 8) * 8 + 4 * BLOCK * -(-blocks * bits // 32)


def warm() -> None:
    """Compile the loops that this needs, or load them from the cache."""
    values, room = np.ones(1, np.float32), room_for(1, 32).numpy()
    payload = room[: kernels.grid.encode(values, 1.0, room)]
    integers = kernels.grid.quantise(values, 1.0)
    kernels.grid.add(payload[: kernels.grid.payload_bytes(payload, 1)], integers)
    kernels.grid.pack(integers, 1, room)
    kernels.grid.decode(payload, 1.0, values)


def room_for(n: int, bits: int) -> Tensor:
    """For a payload of n integers of so many bits or fewer, shape (most_bytes(n, bits),), uint8."""
    return torch.empty(most_bytes(n, bits), dtype=torch.uint8)


def _whole(payload: Tensor, n: int) -> Bytes:
    """The payload as an array, once it is known to hold n integers."""
    array = payload.numpy()
    if kernels.grid.payload_bytes(array, n) != array.size:
        raise PayloadError(
            f"a sum on a grid expects the integers of {n} values and got {array.size} bytes of something else: do all "
            "ranks run the same job file?"
        )
    return array
