"""Graph weighted models on pictures (Amortila and Rabusseau 2018, arXiv:1806.08297).

Each symbol s of an alphabet has a tensor A^s with a leg to the north, the east, the south and the west, all of one
dimension d. A picture is a grid of them: legs of neighbours are contracted, and those at the border are closed by a
vector each side. The number that is left is the picture's value. The same tensors serve pictures of every size; on one
row they are a weighted automaton.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from hpcopt.models.config import PictureModelConfig

MOST_VALUES = 2**26  # that the tensors, or a row's state, may have: 256 MiB


class GraphWeighted(nn.Module):
    """The model.

    Attributes:
        cells: A, shape (symbols, d, d, d, d), legs in the order north, east, south, west.
        north, east, south, west: what closes the legs at each border, shape (d,).
    """

    def __init__(self, cells: Tensor, north: Tensor, east: Tensor, south: Tensor, west: Tensor) -> None:
        super().__init__()
        self.cells = nn.Parameter(cells)
        self.north, self.east = nn.Parameter(north), nn.Parameter(east)
        self.south, self.west = nn.Parameter(south), nn.Parameter(west)

    @property
    def dimension(self) -> int:
        """d."""
        return len(self.north)

    @property
    def borders(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """North, east, south, west."""
        return self.north, self.east, self.south, self.west

    def forward(self, pictures: Tensor) -> Tensor:
        """Values, (n,), of pictures of one size, (n, rows, columns), whose symbols are integers below ``symbols``.

        One row after the other is contracted with a state of d^columns values, each picture at O(rows columns
        d^(columns + 3)) products; a picture that is wider than high is turned first.
        """
        cells: Tensor = self.cells
        north, east, south, west = self.borders
        if pictures.shape[2] > pictures.shape[1]:
            pictures, cells = pictures.transpose(1, 2), cells.permute(0, 4, 3, 2, 1)
            north, east, south, west = west, south, east, north
        n, rows, columns = pictures.shape
        d, symbols = self.dimension, torch.arange(len(cells), device=pictures.device)
        products = cells.permute(0, 1, 4, 3, 2).flatten(1)  # from north and west to south and east
        grid = ((pictures[..., None] == symbols).to(cells.dtype) @ products).view(n, rows, columns, d * d, d * d)
        state = cells.new_ones(n, 1)
        for _ in range(columns):
            state = (state[..., None] * north).flatten(1)
        for row in grid.unbind(1):
            state = state[..., None] * west
            for cell in row.unbind(1):  # the front wire ends in the cell, whose southern leg goes to the back
                front = state.view(n, d, d ** (columns - 1), d).transpose(1, 2)
                state = (front.reshape(n, d ** (columns - 1), d * d) @ cell).view(n, d**columns, d)
            state = state @ east
        for column in reversed(range(columns)):
            state = state.view(n, d**column, d) @ south
        return state.view(n)


def drawn(symbols: int, dimension: int, generator: torch.Generator | None = None) -> GraphWeighted:
    """A model with normal entries, by torch's generator or another; the value of a single pixel has a variance of 1."""
    cells = torch.randn(symbols, *[dimension] * 4, generator=generator) / dimension
    borders = torch.randn(4, dimension, generator=generator) / dimension**0.25
    return GraphWeighted(cells, *borders)


def drawn_for(
    largest: tuple[int, int], symbols: int, dimension: int, generator: torch.Generator | None = None
) -> GraphWeighted:
    """As ``drawn``, for pictures of at most so many rows and columns.

    Raises:
        ValueError: it would take too much memory.
    """
    if (values := dimension ** (min(largest) + 1)) > MOST_VALUES:
        raise ValueError(
            f"a picture of {largest[0]} by {largest[1]} takes a state of {values} values with dimension = "
            f"{dimension}: choose a smaller one, or smaller pictures"
        )
    if (values := symbols * dimension**4) > MOST_VALUES:
        raise ValueError(f"dimension = {dimension} takes tensors of {values} values: choose a smaller one")
    return drawn(symbols, dimension, generator)


def direct_sum(one: GraphWeighted, other: GraphWeighted) -> GraphWeighted:
    """A model whose values are the sums of those of two, of dimension d + d'."""
    d, whole = one.dimension, one.dimension + other.dimension
    cells = one.cells.new_zeros(len(one.cells), *[whole] * 4)
    cells[:, :d, :d, :d, :d] = one.cells.detach()
    cells[:, d:, d:, d:, d:] = other.cells.detach()
    borders = [torch.cat(pair).detach() for pair in zip(one.borders, other.borders, strict=True)]
    return GraphWeighted(cells, *borders)


def tensor_product(one: GraphWeighted, other: GraphWeighted) -> GraphWeighted:
    """A model whose values are the products of those of two, of dimension d d'."""
    whole = one.dimension * other.dimension
    cells = torch.einsum("xnesw,xabcd->xnaebscwd", one.cells, other.cells).detach()
    borders = [torch.kron(*pair).detach() for pair in zip(one.borders, other.borders, strict=True)]
    return GraphWeighted(cells.reshape(len(cells), *[whole] * 4), *borders)


class GraphWeightedConfig(PictureModelConfig):
    """A graph weighted model: one set of tensors for pictures of every size."""

    name: Literal["graph_weighted"] = "graph_weighted"
    dimension: int = Field(4, ge=1, description="d, of every leg; a row's state has d^columns values")

    def build(self, largest: tuple[int, int], symbols: int) -> GraphWeighted:
        """Make the model; it gives values, (n,)."""
        return drawn_for(largest, symbols, self.dimension)
