"""The whole network from its cells."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from hpcopt.comm.world import World
from hpcopt.solvers.gist.arrangement import Arrangement
from hpcopt.solvers.gist.cell import Cell, Place

Members = Sequence[Sequence[int]]


@torch.no_grad()
def mean_of_shared(world: World, cells: Sequence[Cell], places: Sequence[Place], members: Members) -> dict[str, Tensor]:
    """The mean over sub-networks of the parameters that all have, by sums in float64, so that equal ones stay as they
    are. Collective: an all-reduce of each.
    """
    means = {}
    for place in places:
        if place.home is None:
            like = cells[0].held[place.name]
            total = torch.zeros_like(like, dtype=torch.float64)
            for cell in cells:
                if members[cell.part][0] == world.rank:
                    total += cell.held[place.name]
            means[place.name] = (world.all_reduce(total) / len(members)).to(like.dtype)
    return means


@torch.no_grad()
def gather_whole(
    world: World,
    model: nn.Module,
    cells: Sequence[Cell],
    places: Sequence[Place],
    members: Members,
    arrangement: Arrangement,
    shared: Mapping[str, Tensor],
) -> None:
    """Put every cell's values into a network on every rank. Collective: each value is broadcast."""
    held = {cell.part: cell.held for cell in cells}
    for place in places:
        p = model.get_parameter(place.name)
        if place.home is None:
            p.copy_(shared[place.name])
            continue
        for part, ranks in enumerate(members):
            rows = place.own(arrangement, part).to(p.device)
            shape = [len(rows) if dim == place.home else n for dim, n in enumerate(place.shape)]
            piece = held[part][place.name].clone() if part in held else p.new_empty(shape)
            if world.size > 1:
                world.broadcast(piece, ranks[0])
            into = piece
            columns = place.columns(arrangement, part)
            if columns is not None:
                into = torch.empty_like(piece)
                into.index_copy_(1 - place.home, columns.to(p.device), piece)
            p.index_copy_(place.home, rows, into)
