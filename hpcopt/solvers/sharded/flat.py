"""Parameters side by side in one flat tensor, a segment of which is each rank's."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from hpcopt.comm.ragged import exchange
from hpcopt.comm.shards import longest, shards
from hpcopt.comm.world import World

LINE = 16  # values; each parameter begins with a cache line of float32, as torch's own do


class Flat:
    """Parameters of one dtype and device. They become views of the flat tensor, so that what arrives in it is in them.

    Attributes:
        values: shape (n,); gaps between parameters are 0.
        segments: of values, one for each rank; some may be empty.
        places: where each parameter lies.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], ranks: int, *, cut: bool) -> None:
        """Move the parameters in.

        Args:
            parameters: to be moved.
            ranks: that have a segment each.
            cut: segments are of one length, wherever that cuts parameters; if not, they are of whole parameters, and
                about equally long.
        """
        owned = [list(parameters)] if cut else balanced(parameters, ranks)
        self.places: dict[nn.Parameter, slice] = {}
        ends, length = [0], 0
        for own in owned:
            for p in own:
                self.places[p] = slice(length, length + p.numel())
                length += -(-p.numel() // LINE) * LINE
            ends.append(length)
        self.segments = shards(length, ranks, LINE) if cut else [slice(*pair) for pair in pairwise(ends)]
        self.values = torch.zeros(length, dtype=parameters[0].dtype, device=parameters[0].device)
        for p, place in self.places.items():
            p.data = self.values[place].view(p.shape).copy_(p.detach())

    def part(self, p: nn.Parameter, rank: int) -> slice:
        """Which of a parameter's values, flattened, lie in a rank's segment; none: slice(0, 0)."""
        place, segment = self.places[p], self.segments[rank]
        start, stop = max(place.start, segment.start), min(place.stop, segment.stop)
        return slice(start - place.start, stop - place.start) if start < stop else slice(0, 0)

    def sent_bytes(self, rank: int) -> int:
        """Bytes of a rank's segment to all others."""
        segment = self.segments[rank]
        return (segment.stop - segment.start) * self.values.element_size() * (len(self.segments) - 1)


def balanced(parameters: Sequence[nn.Parameter], ranks: int) -> list[list[nn.Parameter]]:
    """Parameters for each rank, in their order: the largest first, each to the rank that has the fewest values.

    >>> [[p.numel() for p in own] for own in balanced([torch.zeros(n) for n in (3, 9, 5, 2)], 2)]
    [[9], [3, 5, 2]]
    """
    loads, owner = [0] * ranks, dict[int, int]()
    for i in sorted(range(len(parameters)), key=lambda i: -parameters[i].numel()):
        owner[i] = loads.index(min(loads))
        loads[owner[i]] += parameters[i].numel()
    return [[p for i, p in enumerate(parameters) if owner[i] == rank] for rank in range(ranks)]


def spread(flat: Flat, world: World) -> None:
    """Bring every rank's segment to all. Collective. Cost: ``(P - 1) alpha + (n - own) / B``; by way of a library's
    all-gather, where the transport has no messages, as if all segments were as long as the longest.
    """
    own, others = flat.values[flat.segments[world.rank]], [r for r in range(world.size) if r != world.rank]
    if world.transport.point_to_point:
        sent_bytes = world.traffic.sent_bytes
        with world.watch(f"all-gather of {flat.values.numel()} parameters", world.ranks):
            exchange(world.transport, [(own, r) for r in others], [(flat.values[flat.segments[r]], r) for r in others])
        world.traffic.dense_bytes += world.traffic.sent_bytes - sent_bytes  # nothing is compressed here
        return
    padded = own.new_zeros(longest(flat.segments))
    padded[: own.numel()] = own
    for segment, values in zip(flat.segments, world.all_gather(padded), strict=True):
        flat.values[segment] = values[: segment.stop - segment.start]
