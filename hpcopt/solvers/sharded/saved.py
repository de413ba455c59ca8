"""An optimizer's state in a checkpoint, by pieces of parameters: what any number of ranks saved, any other takes.

A piece is some of a parameter's values, flattened: ``{"start": ..., "stop": ..., "state": {...}}``. Where each value
moves by itself, a state's tensors are cut as the parameter is, and counts are the same for all pieces.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hpcopt.errors import CheckpointError
from hpcopt.store.saved_parts import SavedParts

Pieces = Mapping[str, Sequence[Mapping[str, Any]]]  # by parameter name


def of_parts(parts: SavedParts) -> Pieces:
    """The pieces that ranks have saved, each its own, in order."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for part in parts:
        for name, piece in part["pieces"].items():
            found.setdefault(name, []).append(piece)
    return {name: sorted(pieces, key=lambda piece: int(piece["start"])) for name, pieces in found.items()}


def of_whole(saved: Mapping[str, Any], order: Sequence[Sequence[str]], shapes: Mapping[str, torch.Size]) -> Pieces:
    """The pieces of an ``optimizer_state`` that all ranks shared: each a whole parameter.

    Args:
        saved: the state.
        order: names of the parameters of each group.
        shapes: of the parameters.
    """
    pieces = {}
    for group, names in zip(saved["param_groups"], order, strict=True):
        for index, name in zip(group["params"], names, strict=True):
            if index in saved["state"]:
                state, stop = saved["state"][index], shapes[name].numel()
                pieces[name] = [{"start": 0, "stop": stop, "state": state, "shape": shapes[name]}]
    return pieces


def others_of_parts(parts: SavedParts) -> dict[Any, Any]:
    """What ranks have saved that is of no parameter, and the same on all of them."""
    return dict(next(iter(parts)).get("others", {}))


def others_of_whole(saved: Mapping[str, Any]) -> dict[Any, Any]:
    """The same, of an ``optimizer_state`` that all ranks shared."""
    indices = {index for group in saved["param_groups"] for index in group["params"]}
    return {key: own for key, own in saved["state"].items() if key not in indices}


def groups_of(parts: SavedParts) -> list[dict[str, Any]]:
    """Settings and counts of the groups, each from a rank that had parameters in it: only there were they counted."""
    saved = list(parts)
    return [
        next((part for part in saved if part["groups"][i]["pieces"]), saved[0])["groups"][i]
        for i in range(len(saved[0]["groups"]))
    ]


def state_of(pieces: Pieces, name: str, wanted: slice, shape: Sequence[int], *, cut: bool) -> dict[str, Any]:
    """The state of some of a parameter's values.

    Args:
        pieces: that were saved.
        name: of the parameter.
        wanted: which of its values, flattened.
        shape: that tensors of as many values get.
        cut: whether the state is cut as the parameter is.

    Raises:
        CheckpointError: not all of it was saved.
    """
    found = pieces.get(name, [])
    if not found:
        return {}  # it has never had a gradient
    if not cut:
        return dict(found[0]["state"])
    inside = [piece for piece in found if piece["start"] < wanted.stop and wanted.start < piece["stop"]]
    if sum(min(p["stop"], wanted.stop) - max(p["start"], wanted.start) for p in inside) != wanted.stop - wanted.start:
        raise CheckpointError(f"the checkpoint does not have the optimizer's state of all of {name}")
    state: dict[str, Any] = {}
    for key, value in inside[0]["state"].items():
        values = [own for piece in inside if (own := _cut(piece, key, wanted)) is not None]
        state[key] = torch.cat(values).view(tuple(shape)) if values else value
    return state


def _cut(piece: Mapping[str, Any], key: str, wanted: slice) -> Tensor | None:
    """What of a piece's state is wanted, flat; None: it is a count, which has no values of its own."""
    value, start, stop = piece["state"][key], int(piece["start"]), int(piece["stop"])
    if not isinstance(value, Tensor) or tuple(value.shape) != tuple(piece.get("shape", (stop - start,))):
        return None
    if key == "step":
        return None
    return value.reshape(-1)[max(wanted.start, start) - start : min(wanted.stop, stop) - start]


def shapes_of(named: Sequence[tuple[str, nn.Parameter]]) -> dict[str, torch.Size]:
    """The parameters' shapes, by name."""
    return {name: p.shape for name, p in named}
