"""Cells from a checkpoint of another number of sub-networks."""

from collections.abc import Mapping

import torch
from torch import Tensor

from hpcopt.solvers.gist.arrangement import Arrangement
from hpcopt.solvers.gist.cell import Place, reorder
from hpcopt.solvers.gist.travel import routes


def resharded(
    saved: Mapping[int, Mapping[str, Tensor]],
    places: list[Place],
    old: Arrangement,
    new: Arrangement,
    part: int,
) -> dict[str, Tensor]:
    """What a cell holds in a new arrangement, from all cells that were saved in an old one; what all had is averaged.

    Args:
        saved: by part, what each cell held.
        places: of the parameters.
        old, new: arrangements of the saved and of the coming round.
        part: the cell's number.
    """
    held = {}
    for place in places:
        parts = [saved[number][place.name] for number in range(old.parts)]
        if place.home is None:
            held[place.name] = torch.stack(parts).double().mean(0).to(parts[0].dtype)
            continue
        size = len(place.own(new, part))
        x = parts[0].new_empty([size if dim == place.home else n for dim, n in enumerate(place.shape)])
        for way in routes(place, old, new):
            if way.target == part:
                before, columns = place.rows(parts[way.source])[way.leave], place.columns(old, way.source)
                place.rows(x)[way.arrive] = before if columns is None else before[:, columns.argsort()]
        columns = place.columns(new, part)
        if columns is not None:
            reorder(place, x, columns)
        held[place.name] = x
    return held
