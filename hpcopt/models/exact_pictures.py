"""Graph weighted models over the symbols 0 and 1 whose values are known at every size: wires carry pixels."""

from typing import Literal

import torch
from torch import Tensor

from hpcopt.models.graph_weighted import GraphWeighted, direct_sum

Entering = Literal["any", "zero", "cyclic"]
BORDER = 2  # a wire that comes from outside


def bars() -> GraphWeighted:
    """1 where every column is constant, else 0; d = 2. A vertical wire carries its column's pixel."""
    cells, ones, zero = torch.zeros(2, 2, 2, 2, 2), torch.ones(2), _unit(2, 0)
    for s in (0, 1):
        cells[s, s, 0, s, 0] = 1
    return GraphWeighted(cells, ones, zero, ones, zero)


def stripes() -> GraphWeighted:
    """1 where every row is constant, else 0; d = 2. A horizontal wire carries its row's pixel."""
    cells, ones, zero = torch.zeros(2, 2, 2, 2, 2), torch.ones(2), _unit(2, 0)
    for s in (0, 1):
        cells[s, 0, s, 0, s] = 1
    return GraphWeighted(cells, zero, ones, zero, ones)


def bars_and_stripes() -> GraphWeighted:
    """1 for bars, 1 for stripes, 2 where all pixels are equal, 0 for all else; d = 4.

    >>> pictures = torch.tensor([[[0, 1, 1], [0, 1, 1]], [[0, 1, 1], [0, 1, 0]], [[1, 1, 1], [1, 1, 1]]])
    >>> bars_and_stripes()(pictures).tolist()
    [1.0, 0.0, 2.0]
    """
    return direct_sum(bars(), stripes())


def shifting_bits(entering: Entering = "any") -> GraphWeighted:
    """1 where each row is the one above moved right by a pixel, else 0. What enters at the left is any pixel, zero, or
    the one that leaves at the right (``cyclic``). d = 3, cyclic 5.

    A southern leg carries the cell's pixel. An eastern leg carries the pixel above the cell, which the next cell must
    equal; if it is cyclic, the row's first pixel too, which the pixel above its last cell must equal.
    """
    cyclic = entering == "cyclic"
    d = 5 if cyclic else 3
    east = torch.ones(d)
    east[3:] = 0  # the pixel above the last cell is not the row's first

    def wire(above: int, first: int) -> int:
        """The state of an eastern leg; BORDER says that nothing is above, or that nothing is to the left."""
        return above if above == BORDER or not cyclic else {(0, 0): 0, (1, 1): 1, (0, 1): 3, (1, 0): 4}[above, first]

    cells = torch.zeros(2, d, d, d, d)
    for s in (0, 1):
        for above in (0, 1, BORDER):
            if entering != "zero" or s == 0 or above == BORDER:
                cells[s, above, wire(above, s), s, BORDER] = 1
            for first in (0, 1):
                cells[s, above, wire(above, first), s, wire(s, first)] = 1
    return GraphWeighted(cells, _unit(d, BORDER), east, torch.ones(d), _unit(d, BORDER))


def _unit(d: int, place: int) -> Tensor:
    return torch.eye(d)[place]
