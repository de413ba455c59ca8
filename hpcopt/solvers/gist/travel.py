"""From the arrangement of one round to that of the next: rows of units go to the ranks of their new sub-networks.

A value travels if its unit changes ranks, (1 - 1/m) of all on average, straight from rank to rank: nobody holds the
whole. A parameter moves some columns at a time, so that little is held twice.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hpcopt.comm import ragged
from hpcopt.comm.world import World
from hpcopt.solvers.gist.arrangement import Arrangement, values
from hpcopt.solvers.gist.cell import Cell, Place, reorder


class Route(NamedTuple):
    """Units that go from one cell to another.

    Attributes:
        source, target: numbers of the cells.
        leave, arrive: places of their values along the home axis in either.
    """

    source: int
    target: int
    leave: Tensor
    arrive: Tensor


@torch.no_grad()
def rearrange(
    world: World,
    cells: Sequence[Cell],
    places: Sequence[Place],
    members: Sequence[Sequence[int]],
    old: Arrangement,
    new: Arrangement,
) -> None:
    """Move the values of all cells. Collective.

    Args:
        cells: those of this rank.
        places: of the parameters.
        members: ranks of every cell.
        old, new: arrangements with the same number of parts.
    """
    sent_bytes = world.traffic.sent_bytes
    for place in places:
        if place.axis is None:
            continue
        for cell in cells:
            columns = place.columns(old, cell.part)
            if columns is not None:
                reorder(place, cell.held[place.name], columns.argsort())
        _move(world, cells, place, members, routes(place, old, new))
        for cell in cells:
            columns = place.columns(new, cell.part)
            if columns is not None:
                reorder(place, cell.held[place.name], columns)
    world.traffic.dense_bytes += world.traffic.sent_bytes - sent_bytes  # nothing is compressed here
    for cell in cells:
        cell.expose(new)


def routes(place: Place, old: Arrangement, new: Arrangement) -> list[Route]:
    """From every cell to every cell, where any unit goes that way; in one order on all ranks."""
    assert place.axis is not None
    layer, each = place.axis
    found = []
    for source in range(old.parts):
        before = old.units(layer, source)
        for target in range(new.parts):
            after = new.units(layer, target)
            _, leave, arrive = np.intersect1d(before, after, assume_unique=True, return_indices=True)
            if len(leave):
                pair = (torch.from_numpy(values(at, each)) for at in (leave, arrive))
                found.append(Route(source, target, *pair))
    return found


def _move(
    world: World, cells: Sequence[Cell], place: Place, members: Sequence[Sequence[int]], ways: Sequence[Route]
) -> None:
    """Bring rows to their new cells, some columns at a time. Collective."""
    rows = {cell.part: place.rows(cell.held[place.name]) for cell in cells}
    device, width = (like := next(iter(rows.values()))).device, like.shape[1]
    tallest = max(len(way.leave) for way in ways) * len(members)
    for some in place.slabs(torch.empty(tallest, width, device="meta")):
        outgoing, incoming = list[tuple[Tensor, int]](), list[tuple[Tensor, int]]()
        landing = list[tuple[Route, Tensor]]()
        for way, holder, taker in journeys(ways, members):
            if world.rank == holder:
                piece = rows[way.source][:, some][way.leave.to(device)].contiguous()
            elif world.rank == taker:
                piece = like.new_empty(len(way.arrive), some.stop - some.start)
                incoming.append((piece, holder))
            else:
                continue
            if world.rank == taker:
                landing.append((way, piece))
            else:
                outgoing.append((piece, taker))
        with world.watch(f"units of {place.name} on their way", world.ranks):
            ragged.exchange(world.transport, outgoing, incoming)
        for way, piece in landing:
            rows[way.target][way.arrive.to(device), some] = piece


def journeys(ways: Iterable[Route], members: Sequence[Sequence[int]]) -> Iterator[tuple[Route, int, int]]:
    """Every route with each rank that takes its units and the rank that it gets them from: itself, if it has them."""
    for way in ways:
        holders = members[way.source]
        for place, taker in enumerate(members[way.target]):
            yield way, taker if taker in holders else holders[place % len(holders)], taker
