"""The whole network without anybody holding it: each rank has its units' values and computes their outputs.

A hidden layer's outputs of one rank are needed by all, and are broadcast in turn; the logits are summed over the ranks.
For evaluation only: there is no backward pass.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hpcopt.comm.world import World
from hpcopt.errors import JobError
from hpcopt.solvers.gist.arrangement import Arrangement, values
from hpcopt.solvers.gist.cell import Cell, Place


class ShardedModel(nn.Module):
    """The network. All ranks must call it with inputs of the same shape. Collective.

    Attributes:
        whole_size: parameters of the whole.
    """

    def __init__(self, world: World, model: nn.Module, places: list[Place], cell: Cell) -> None:
        super().__init__()
        self.whole_size = sum(p.numel() for p in model.parameters())
        self._world, self._places, self._cell = world, {place.name: place for place in places}, cell
        self.network = copy.deepcopy(model)
        for name, module in list(self.network.named_modules()):
            if isinstance(module, nn.Linear):
                self._replace(name, _Linear(world, self._places[f"{name}.weight"], module))
            elif "Norm" in type(module).__name__:
                self._replace(name, _Norm(world, self._places[f"{name}.weight"].shape[0]))
        self.requires_grad_(False)

    def _replace(self, name: str, module: nn.Module) -> None:
        owner, _, leaf = name.rpartition(".")
        setattr(self.network.get_submodule(owner), leaf, module)

    def follow(self, arrangement: Arrangement, shared: Mapping[str, Tensor]) -> None:
        """Read what the cell holds now, and the means of what all cells have."""
        for name in self._places:
            owner, _, leaf = name.rpartition(".")
            module = self.network.get_submodule(owner)
            setattr(module, leaf, nn.Parameter(shared.get(name, self._cell.held[name]), requires_grad=False))
            if isinstance(module, _Linear):
                module.arrangement = arrangement

    @torch.no_grad()
    def forward(self, *inputs: Any) -> Tensor:
        """What the whole network gives, the same on all ranks.

        Raises:
            JobError: on all ranks: their inputs are not of the same shape.
        """
        shape = torch.tensor([n for x in inputs if isinstance(x, Tensor) for n in x.shape])
        if self._world.size > 1 and not (self._world.all_gather(shape) == shape).all():
            raise JobError("ranks evaluate different inputs: ultra_wide is for workloads on one graph").everywhere()
        out: Tensor = self.network(*inputs)
        return out


class _Linear(nn.Module):
    """A dense layer with one rank's rows of its matrix; of the last layer, its columns."""

    arrangement: Arrangement

    def __init__(self, world: World, place: Place, layer: nn.Linear) -> None:
        super().__init__()
        self._world, self._place = world, place
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, x: Tensor) -> Tensor:
        place = self._place
        if place.home == 1:
            out = self._world.all_reduce((x @ self.weight.T).contiguous())
        elif place.across is None:
            out = x @ self.weight.T
        else:
            out = self._from_all(x)
        return out if self.bias is None else out + self.bias

    def _from_all(self, x: Tensor) -> Tensor:
        place, arrangement, rank = self._place, self.arrangement, self._world.rank
        assert place.across is not None
        columns = place.columns(arrangement, rank)
        assert columns is not None
        where = columns.argsort()
        out = x.new_zeros(len(x), len(self.weight))
        for part in range(arrangement.parts):
            units = torch.from_numpy(values(arrangement.units(place.across.layer, part), place.across.each))
            theirs = x.contiguous() if part == rank else x.new_empty(len(x), len(units))
            if self._world.size > 1:
                self._world.broadcast(theirs, part)
            for some in place.slabs(self.weight.T):
                out[:, some] += theirs @ self.weight[some][:, where[units].to(x.device)].T
        return out


class _Norm(nn.Module):
    """LayerNorm over the units of all ranks."""

    def __init__(self, world: World, units: int) -> None:
        super().__init__()
        self._world, self._units = world, units
        self.weight = self.bias = nn.Parameter(torch.empty(0), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        mean = self._world.all_reduce(x.sum(1)) / self._units
        centred = x - mean[:, None]
        variance = self._world.all_reduce(centred.square().sum(1)) / self._units
        return centred * (variance + 1e-5).rsqrt()[:, None] * self.weight + self.bias
