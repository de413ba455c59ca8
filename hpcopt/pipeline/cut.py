"""Where a network is cut into blocks: at named layers, into so many blocks of equal count, or of balanced cost.

The unit of a cut is a layer with parameters and the layers without any that follow it (its activation); a residual
block or a transformer's layer is one layer. A layer without a useful derivative, which brings its own ``proximal``, is
always a block of its own: nothing is differentiated through it.
"""

import itertools
from collections.abc import Sequence
from typing import Any, Literal

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
        model: an ``nn.Sequential``, whose inner ones are opened, or what has one to give (``in_turn``).
        example: inputs of one sample, shape (1, ...); only ``balance="cost"`` looks at it.
        blocks: how many, None for one block a unit; blocks around layers with a ``proximal`` come on top of it.
        balance: make the largest block's multiply-adds, or its number of units, as small as can be.
        at: instead, names of the layers that each begin a block, as the sequence's ``named_modules()`` has them.

    Raises:
        JobError: the model is not sequential, or has no such layers, or not so many.
    """
    units = _units(_layers(in_turn(model)))
    if at:
        starts = _named(units, at)
    elif blocks is None:
        starts = set(range(len(units)))
    else:
        if blocks > len(units):
            raise JobError(f"[solver] blocks = {blocks}, but the model has {len(units)} layers with parameters")
        weights = costs([_joined(unit) for unit in units], example) if balance == "cost" else [1.0] * len(units)
        starts = set(balanced(weights, blocks))
    for index, unit in enumerate(units):
        if is_proximal(unit[0][1]):
            starts |= {index, index + 1} - {len(units)}
    edges = [*sorted(starts), len(units)]
    result = [_joined(list(itertools.chain(*units[a:b]))) for a, b in itertools.pairwise(edges)]
    _refuse_shared(result)
    return result


def in_turn(model: nn.Module) -> nn.Sequential:
    """The layers of a network that goes through them one after the other: itself, or what its own method ``in_turn``
    gives, which shares its layers and computes the same.

    Raises:
        JobError: it is no such network.
    """
    given: Any = getattr(model, "in_turn", lambda: model)()
    if not _is_plain(given):
        raise JobError(
            f"only an nn.Sequential can be cut into blocks, not a {type(given).__name__}: give the network a method "
            "in_turn() -> nn.Sequential, whose layers compute the same one after the other"
        )
    sequence: nn.Sequential = given
    return sequence


def is_proximal(layer: nn.Module) -> bool:
    """Whether a layer brings its own minimisation instead of a derivative."""
    return hasattr(layer, "proximal")


def output_shapes(blocks: Sequence[nn.Module], example: Tensor) -> list[torch.Size]:
    """Shape of one sample's outputs of each block."""
    return [out.shape[1:] for out in outputs(blocks, example)]


def outputs(blocks: Sequence[nn.Module], example: Tensor) -> list[Tensor]:
    """What each block gives for one sample, without a graph.

    Raises:
        JobError: it is not one tensor with the samples along its first dimension.
    """
    given = []
    with torch.no_grad():
        x = example
        for index, block in enumerate(blocks):
            training = block.training
            x = block.eval()(x)
            block.train(training)
            if not isinstance(x, Tensor) or x.shape[:1] != example.shape[:1]:
                what = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
                raise JobError(f"block {index} gives {what} for one sample: cut where one tensor has a row a sample")
            given.append(x)
    return given


def costs(blocks: Sequence[nn.Module], example: Tensor) -> list[float]:
    """Multiply-adds of each block for a sample: a weight's size times the places it is applied at, and the outputs."""
    found: dict[nn.Module, float] = {}

    def count(layer: nn.Module, _inputs: tuple[Tensor, ...], output: Any) -> None:
        weight = getattr(layer, "weight", None)
        values = output.numel() if isinstance(output, Tensor) else 0
        applied = weight.numel() * values / weight.shape[0] if weight is not None and weight.dim() > 1 else 0
        found[layer] = applied + values

    hooks = [
        m.register_forward_hook(count)
        for block in blocks
        for m in block.modules()
        if not any(True for _ in m.children())
    ]
    outputs(blocks, example)
    for hook in hooks:
        hook.remove()
    return [sum(found.get(m, 0) for m in block.modules()) for block in blocks]


def balanced(weights: Sequence[float], parts: int, between: Sequence[Sequence[float]] | None = None) -> tuple[int, ...]:
    """Starts of ``parts`` runs of consecutive weights whose largest sum is smallest, in order; the first is 0.

    Args:
        weights: of what is dealt.
        parts: runs.
        between: ``between[k][i]`` is the weight of a start of run k + 1 at i, which counts beside those of the runs.
    """

    def edge(count: int, start: int) -> float:
        return between[count - 2][start] if between and count > 1 else 0.0

    sums = [0.0, *itertools.accumulate(weights)]
    best: dict[tuple[int, int], tuple[float, tuple[int, ...]]] = {(0, 0): (0.0, ())}
    for count in range(1, parts + 1):
        for end in range(count, len(weights) + 1):
            best[count, end] = min(
                (
                    max(best[count - 1, start][0], sums[end] - sums[start], edge(count, start)),
                    (*best[count - 1, start][1], start),
                )
                for start in range(count - 1, end)
                if (count - 1, start) in best
            )
    return best[parts, len(weights)][1]


def dealt(weights: Sequence[int], parts: int) -> list[int]:
    """The part of each weight, in order, so that parts have nearly equal sums: that in which its middle lies.

    >>> dealt([1, 1, 2, 4], 2), dealt([1, 9], 3)
    ([0, 0, 0, 1], [0, 1])
    """
    total = max(1, sum(weights))
    sums = itertools.accumulate(weights, initial=0)
    return [min(parts - 1, int(parts * (before + w / 2) / total)) for before, w in zip(sums, weights, strict=False)]


def _is_plain(layer: nn.Module) -> bool:
    """Whether it does no more than to go through its layers."""
    return isinstance(layer, nn.Sequential) and type(layer).forward is nn.Sequential.forward


def _joined(layers: Layers) -> nn.Sequential:
    return nn.Sequential(*(module for _, module in layers))


def _layers(model: nn.Sequential, prefix: str = "") -> Layers:
    layers: Layers = []
    for name, layer in model._modules.items():  # named_children() leaves out a layer that stands in it twice
        assert layer is not None
        if _is_plain(layer):
            assert isinstance(layer, nn.Sequential)
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


def _refuse_shared(blocks: Sequence[nn.Module]) -> None:
    owners: dict[int, int] = {}
    for index, block in enumerate(blocks):
        for parameter in block.parameters():
            if owners.setdefault(id(parameter), index) != index:
                raise JobError(f"blocks {owners[id(parameter)]} and {index} share a parameter: cut elsewhere")
