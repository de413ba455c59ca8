"""Where a network is cut into blocks: at named layers, into so many blocks of equal count, or of balanced cost.

The unit of a cut is a layer with parameters and the layers without any that follow it (its activation). A layer without
a useful derivative, which brings its own ``proximal``, is always a block of its own: nothing is differentiated through
it.
"""

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from hpcopt.errors import JobError

Balance = Literal["cost", "layers"]
Layers = list[tuple[str, nn.Module]]


def cut(
    model: nn.Module, example: Tensor, *, blocks: int | None = None, balance: Balance = "cost", at: Sequence[str] = ()
) -> list[nn.Sequential]:
    """Cut a sequential model into blocks that share its layers.

    Args:
        model: an ``nn.Sequential``, whose inner ones are opened.
        example: inputs of one sample, shape (1, ...); only ``balance="cost"`` looks at it.
        blocks: how many, None for one block a unit; blocks around layers with a ``proximal`` come on top of it.
        balance: make the largest block's multiply-adds, or its number of units, as small as can be.
        at: instead, names of the layers that each begin a block, as ``model.named_modules()`` has them.

    Raises:
        JobError: the model is not sequential, or has no such layers, or not so many.
    """
    if not isinstance(model, nn.Sequential):
        raise JobError(f"only an nn.Sequential can be cut into blocks, not a {type(model).__name__}")
    units = _units(_layers(model))
    if at:
        starts = _named(units, at)
    elif blocks is None:
        starts = set(range(len(units)))
    else:
        if blocks > len(units):
            raise JobError(f"[solver] blocks = {blocks}, but the model has {len(units)} layers with parameters")
        weights = _costs(model, units, example) if balance == "cost" else [1.0] * len(units)
        starts = _balanced(weights, blocks)
    for index, unit in enumerate(units):
        if is_proximal(unit[0][1]):
            starts |= {index, index + 1} - {len(units)}
    edges = [*sorted(starts), len(units)]
    groups = [list(itertools.chain(*units[a:b])) for a, b in itertools.pairwise(edges)]
    result = [nn.Sequential(*(module for _, module in group)) for group in groups]
    _refuse_shared(result)
    return result


def is_proximal(layer: nn.Module) -> bool:
    """Whether a layer brings its own minimisation instead of a derivative."""
    return hasattr(layer, "proximal")


def output_shapes(blocks: Sequence[nn.Module], example: Tensor) -> list[torch.Size]:
    """Shape of one sample's outputs of each block."""
    shapes = []
    with torch.no_grad():
        x = example
        for block in blocks:
            training = block.training
            x = block.eval()(x)
            block.train(training)
            shapes.append(x.shape[1:])
    return shapes


def _layers(model: nn.Sequential, prefix: str = "") -> Layers:
    layers: Layers = []
    for name, layer in model._modules.items():  # named_children() leaves out a layer that stands in it twice
        assert layer is not None
        if isinstance(layer, nn.Sequential):
            layers += _layers(layer, f"{prefix}{name}.")
        else:
            layers.append((prefix + name, layer))
    return layers


def _units(layers: Layers) -> list[Layers]:
    units: list[Layers] = []
    lead: Layers = []  # layers without parameters before the first with some
    for name, layer in layers:
        begins = is_proximal(layer) or any(True for _ in layer.parameters())
        if begins:
            units.append([*lead, (name, layer)])
            lead = []
        elif units and not is_proximal(units[-1][0][1]):
            units[-1].append((name, layer))
        else:
            lead.append((name, layer))
    if not units or lead:
        raise JobError("a model that is cut into blocks must have parameters, also after its last proximal layer")
    return units


def _named(units: list[Layers], at: Sequence[str]) -> set[int]:
    first = {name: index for index, unit in enumerate(units) for name, _ in unit[:1]}
    unknown = [name for name in at if name not in first]
    if unknown:
        raise JobError(f"[solver] cuts: no block can begin at {unknown}; it can at {list(first)}")
    return {0} | {first[name] for name in at}


def _costs(model: nn.Sequential, units: list[Layers], example: Tensor) -> list[float]:
    """Multiply-adds of each unit for one sample: a weight's size times the places it is applied at; and the outputs."""
    costs: dict[nn.Module, float] = {}

    def count(layer: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        weight = getattr(layer, "weight", None)
        applied = weight.numel() * output.numel() / weight.shape[0] if weight is not None and weight.dim() > 1 else 0
        costs[layer] = applied + output.numel()

    hooks = [m.register_forward_hook(count) for m in model.modules() if not any(True for _ in m.children())]
    output_shapes([model], example)
    for hook in hooks:
        hook.remove()
    return [sum(costs.get(m, 0) for _, layer in unit for m in layer.modules()) for unit in units]


def _balanced(weights: Sequence[float], blocks: int) -> set[int]:
    """Starts of ``blocks`` runs of consecutive weights whose largest sum is smallest."""
    sums = [0.0, *itertools.accumulate(weights)]
    best: dict[tuple[int, int], tuple[float, tuple[int, ...]]] = {(0, 0): (0.0, ())}
    for parts in range(1, blocks + 1):
        for end in range(parts, len(weights) + 1):
            best[parts, end] = min(
                (max(best[parts - 1, start][0], sums[end] - sums[start]), (*best[parts - 1, start][1], start))
                for start in range(parts - 1, end)
                if (parts - 1, start) in best
            )
    return set(best[blocks, len(weights)][1])


def _refuse_shared(blocks: Sequence[nn.Module]) -> None:
    owners: dict[int, int] = {}
    for index, block in enumerate(blocks):
        for parameter in block.parameters():
            if owners.setdefault(id(parameter), index) != index:
                raise JobError(f"blocks {owners[id(parameter)]} and {index} share a parameter: cut elsewhere")
