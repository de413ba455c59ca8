"""What a rank holds of the network for one sub-network: the rows of its units, with the sub-network as views into them.

A parameter lies along the units of a hidden layer, its home axis (that of its outputs, if it has two). A cell holds
the values of its own units there, whole: those that belong to its sub-network, and those that touch units of others and
rest in this round. The first stand in front, so the sub-network is a view, and all cells together hold every value
once. Parameters without a hidden axis, the output's bias, every cell holds whole.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from hpcopt.models.hidden import Axis, hidden_axes
from hpcopt.seeds import EVERY_RANK, derive
from hpcopt.solvers.gist.arrangement import Arrangement, values

SLABS, LEAST = 40, 1 << 16  # a piece in transit is at most a fortieth of a parameter, or that many values


@dataclass(frozen=True)
class Place:
    """How a parameter lies in cells.

    Attributes:
        name, shape: of the whole.
        home: dimension of its home axis; None: it has none.
        axis: the home axis.
        across: the other hidden axis; None: there is none.
    """

    name: str
    shape: tuple[int, ...]
    home: int | None
    axis: Axis | None
    across: Axis | None

    @classmethod
    def all_of(cls, model: nn.Module) -> list[Self]:
        """Of every parameter of a network."""
        axes, places = hidden_axes(model), []
        for name, p in model.named_parameters():
            there = [(dim, axis) for dim, axis in enumerate(axes[name]) if axis is not None]
            home, axis = there[0] if there else (None, None)
            places.append(cls(name, tuple(p.shape), home, axis, there[1][1] if len(there) > 1 else None))
        return places

    def rows(self, x: Tensor) -> Tensor:
        """A view of the whole or of a cell's values with the home axis first, shape (values along it, others)."""
        moved = x if self.home is None else x.movedim(self.home, 0)
        return moved if moved.dim() > 1 else moved[:, None]

    def own(self, arrangement: Arrangement, part: int) -> Tensor:
        """Places along the home axis of a cell's values."""
        assert self.axis is not None
        return torch.from_numpy(values(arrangement.units(self.axis.layer, part), self.axis.each))

    def columns(self, arrangement: Arrangement, part: int) -> Tensor | None:
        """Places along the other hidden axis in a cell's order; None: it has no such axis."""
        if self.across is None:
            return None
        return torch.from_numpy(values(arrangement.order(self.across.layer, part), self.across.each))

    def slabs(self, x: Tensor) -> Iterator[slice]:
        """Stretches of the columns of ``rows``, all of which are moved one after the other."""
        height, width = x.shape
        step = max(1, max(LEAST, x.numel() // SLABS) // max(1, height))
        return (slice(at, min(width, at + step)) for at in range(0, width, step))


class Cell:
    """The values of one sub-network's units.

    Attributes:
        part: its number.
        held: the values by name of the parameter.
        module: the sub-network, whose parameters are views of them.
    """

    def __init__(self, model: nn.Module, places: list[Place], part: int, device: torch.device) -> None:
        """Make a cell without values: ``held`` is to be filled by ``take`` or ``draw``, or whatever has them."""
        self.part, self._places, self._device = part, places, device
        self.held: dict[str, Tensor] = {}
        memo: dict[int, object] = {
            id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in model.parameters()
        }
        self.module = copy.deepcopy(model, memo)

    @torch.no_grad()
    def take(self, whole: Mapping[str, Tensor], arrangement: Arrangement) -> None:
        """Take the values out of the whole network's."""
        for place in self._places:
            self.held[place.name] = _cut(place, whole[place.name].detach(), arrangement, self.part).to(self._device)
        self.expose(arrangement)

    @torch.no_grad()
    def draw(self, arrangement: Arrangement, seed: int) -> None:
        """Begin with values that are drawn for each unit by itself: the same whatever the arrangement."""
        for place in self._places:
            self.held[place.name] = self._drawn(place, arrangement, seed).to(self._device)
        self.expose(arrangement)

    def _drawn(self, place: Place, arrangement: Arrangement, seed: int) -> Tensor:
        if place.home is None or place.axis is None:
            return initial(self.module, place, None, 0)
        units, each = arrangement.units(place.axis.layer, self.part), place.axis.each
        x = torch.empty([len(units) * each if dim == place.home else n for dim, n in enumerate(place.shape)])
        for at, unit in enumerate(units):
            drawn = initial(self.module, place, int(unit), seed)
            place.rows(x)[at * each : (at + 1) * each] = drawn
        columns = place.columns(arrangement, self.part)
        if columns is not None:
            reorder(place, x, columns)
        return x

    def adopt(self, held: Mapping[str, Tensor]) -> None:
        """Take values as another cell held them.

        Raises:
            ValueError: they are of other shapes.
        """
        for name, x in held.items():
            if x.shape != self.held[name].shape:
                raise ValueError(f"{name} has shape {tuple(x.shape)}, not {tuple(self.held[name].shape)}")
        self.held = {name: held[name].to(self._device, copy=True) for name in self.held}

    def expose(self, arrangement: Arrangement) -> None:
        """Make the sub-network's parameters views of what is held, in the order of an arrangement."""
        for place in self._places:
            x = self.held[place.name]
            if place.across is not None:
                inner = len(arrangement.units(place.across.layer, self.part)) * place.across.each
                x = x[:, :inner] if place.home == 0 else x[:inner]
            owner, _, leaf = place.name.rpartition(".")
            old = self.module.get_parameter(place.name)
            setattr(self.module.get_submodule(owner), leaf, nn.Parameter(x, old.requires_grad))


def _cut(place: Place, whole: Tensor, arrangement: Arrangement, part: int) -> Tensor:
    if place.home is None:
        return whole.clone()
    x = whole.index_select(place.home, place.own(arrangement, part).to(whole.device))
    columns = place.columns(arrangement, part)
    return x if columns is None else x.index_select(1 - place.home, columns.to(whole.device))


@torch.no_grad()
def reorder(place: Place, x: Tensor, columns: Tensor) -> None:
    """Put a cell's values along the other hidden axis into another order, in place, some rows at a time."""
    rows = place.rows(x)
    columns = columns.to(x.device)
    for some in place.slabs(rows.T):
        rows[some] = rows[some][:, columns]


def initial(model: nn.Module, place: Place, unit: int | None, seed: int) -> Tensor:
    """A unit's values of a parameter at the start, with the home axis first: matrices are uniform within one over the
    root of their inputs, as torch's dense layers are; gains of norms are 1, biases 0.
    """
    each = place.axis.each if place.axis is not None else 1
    others = [n for dim, n in enumerate(place.shape) if dim != place.home]
    if len(place.shape) > 1:
        bound = place.shape[-1] ** -0.5
        generator = torch.Generator().manual_seed(derive(seed, unit or 0, EVERY_RANK, place.name))
        shape = place.shape if unit is None else (each, *others)
        drawn: Tensor = torch.rand(*shape, generator=generator) * (2 * bound) - bound
        return drawn
    owner, _, leaf = place.name.rpartition(".")
    is_gain = "Norm" in type(model.get_submodule(owner)).__name__ and leaf == "weight"
    return torch.full((place.shape[0],) if unit is None else (each, 1), 1.0 if is_gain else 0.0)
