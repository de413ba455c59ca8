"""Work items dealt over the replicas, each done once: item i by replica i mod M."""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from hpcopt.comm.world import World
from hpcopt.errors import JobError
from hpcopt.replicator import linear
from hpcopt.replicator.calls import Calls
from hpcopt.replicator.collectives import Collectives, Op
from hpcopt.replicator.tree import Tree, flows, leaves, like, plan, unplan

Item = TypeVar("Item")


_COMBINE: dict[Op, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": torch.add,
    "mean": torch.add,
    "min": torch.minimum,
    "max": torch.maximum,
}


def map_gather(replicas: World, calls: Calls, items: Sequence[Item], fn: Callable[[Item], Tree]) -> list[Tree]:
    """Give ``[fn(item) for item in items]`` on every replica. See ``Replicator.map_gather``."""
    mine = [fn(item) for item in items[replicas.rank :: replicas.size]]
    form = plan(mine)
    calls.agree(f"map_gather of {len(items)} items")
    forms = [unplan(text) for text in replicas.gather_text(form)]
    everyones = _gather(replicas, calls, leaves(mine), [leaves(form) for form in forms])
    rows = [like(form, values) for form, values in zip(forms, everyones, strict=True)]
    return [rows[i % replicas.size][i // replicas.size] for i in range(len(items))]


def map_reduce(
    replicas: World,
    calls: Calls,
    collectives: Collectives,
    fn: Callable[[Item], Tree],
    items: Sequence[Item],
    op: Op,
) -> Tree:
    """Reduce ``fn(item)`` over all items. See ``Replicator.map_reduce``."""
    if not items:
        raise JobError("map_reduce of no items: there is no result that it could give")
    mine = [fn(item) for item in items[replicas.rank :: replicas.size]]
    combine = _COMBINE[op]
    total = mine[0] if mine else None
    for tree in mine[1:]:
        pairs = zip(leaves(total), leaves(tree), strict=True)
        total = like(total, [combine(a, b) for a, b in pairs])
    form = plan(total)
    calls.agree(f"map_reduce ({op}) of {len(items)} items")
    if len(items) < replicas.size:  # some have none to start from
        form = bytes(replicas.broadcast_integers(list(form.encode()))).decode()
        total = total if mine else _neutral(unplan(form), op)
    over_ranks = {"min": collectives.all_min, "max": collectives.all_max}.get(op, collectives.all_sum)
    reduced = over_ranks(total)
    return like(reduced, [x / len(items) for x in leaves(reduced)]) if op == "mean" else reduced


def _gather(replicas: World, calls: Calls, values: list[Tensor], templates: list[list[Tensor]]) -> list[list[Tensor]]:
    """Every replica's values, which look like its templates: one all-gather of the longest for each kind of values."""
    gathered = [list(part) for part in templates]
    for kind in sorted({_kind(x) for part in templates for x in part}, key=str):
        places = [[i for i, x in enumerate(part) if _kind(x) == kind] for part in templates]
        lengths = [sum(part[i].numel() for i in own) for part, own in zip(templates, places, strict=True)]
        flat = _padded([values[i] for i in places[replicas.rank]], max(lengths), *kind)
        rows = linear.apply(linear.Gather(replicas), calls, flat)
        for part, own, row, length in zip(gathered, places, rows, lengths, strict=True):
            pieces = torch.split(row[:length], [part[i].numel() for i in own])
            for i, piece in zip(own, pieces, strict=False):  # of no values there is one piece
                part[i] = piece.view(part[i].shape)
    return gathered


def _kind(x: Tensor) -> tuple[torch.dtype, bool]:
    return x.dtype, x.requires_grad


def _padded(values: list[Tensor], length: int, dtype: torch.dtype, flowing: bool) -> Tensor:
    flat = torch.cat([torch.empty(0, dtype=dtype), *(x.reshape(-1).cpu() for x in values)])
    flat = torch.cat([flat, flat.new_zeros(length - flat.numel())])
    return flat.requires_grad_() if flowing and not flows(flat) else flat


def _neutral(tree: Tree, op: str) -> Tree:
    """What changes no result."""
    return like(tree, [torch.full_like(x, _start(x.dtype, op)).requires_grad_(x.requires_grad) for x in leaves(tree)])


def _start(dtype: torch.dtype, op: str) -> float | int | bool:
    if op in ("sum", "mean"):
        return 0
    if dtype == torch.bool:
        return op == "min"
    if dtype.is_floating_point:
        return math.inf if op == "min" else -math.inf
    return torch.iinfo(dtype).max if op == "min" else torch.iinfo(dtype).min
