"""A rank's part of a checkpoint: of each layer that it owns the factors, the inverse, the moments, and what the
refresher has begun.

By the layer's name, so that any number of ranks, each with layers of its own, can take the parts of any other.
"""

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from hpcopt.errors import CheckpointError
from hpcopt.solvers.kaisa.moments import Moments
from hpcopt.solvers.kaisa.refresh import Refresher
from hpcopt.solvers.kaisa.settings import KaisaSettings

SHAPING = ("skip", "max_size", "large", "method", "methods", "heads", "soap")  # decide the factors, and their shapes


def rank_state(refresher: Refresher, moments: Moments) -> dict[str, Any]:
    """This rank's part, without copies."""
    state = {}
    for i in refresher.plan.owned:
        average, layer = refresher.averages.of[i], refresher.layers[i]
        state[layer.name] = {
            "method": layer.method,
            "source": layer.source,
            "a": average.a,
            "g": average.g,
            "updates": average.updates,
            "inverse": refresher.inverses.of(i),
            "moments": moments.of(i),
            **refresher.state(i),
        }
    return state


def restore(
    refresher: Refresher, moments: Moments, parts: Sequence[dict[str, Any]], due: int | None, inverses: bool = True
) -> None:
    """Take what this rank needs from any number of ranks' parts.

    Args:
        due: the refresher's own ``due_step``.
        inverses: take over the inverses, too; if not, all are made at the next step.
        moments: taken over where the layer still goes by the method that they are of.

    Raises:
        CheckpointError: a layer is missing or of another size.
    """
    own: dict[int, dict[str, Any]] = {}
    missing = {refresher.layers[i].name for i in refresher.plan.worked}
    for part in parts:
        for i, layer in enumerate(refresher.layers):
            entry = part.get(layer.name)
            if entry is not None:
                _restore(refresher, moments, i, entry, inverses)
                missing.discard(layer.name)
                if i in refresher.averages.of:
                    own[i] = entry
    if missing:
        raise CheckpointError(f"the checkpoint has no factors of {', '.join(sorted(missing))}")
    if inverses:
        refresher.restore(own, due)
    else:
        refresher.forget()


def before(now: KaisaSettings, saved: dict[str, Any]) -> KaisaSettings:
    """The settings that a checkpoint was made with; those of now, where it has none.

    Raises:
        CheckpointError: they are not this version's.
    """
    try:
        return KaisaSettings(**{**now.model_dump(), **saved})
    except ValidationError as error:
        raise CheckpointError(f"the checkpoint's settings of KAISA are not this version's: {error}") from error


def changes(now: KaisaSettings, then: KaisaSettings) -> str:
    """For a message: which settings that decide a checkpoint's shapes are others now."""
    pairs = ((name, getattr(then, name), getattr(now, name)) for name in SHAPING)
    text = ", ".join(f"{name} = {old!r} and now has {new!r}" for name, old, new in pairs if old != new)
    return f"; it was made with {text}" if text else ""


def _restore(refresher: Refresher, moments: Moments, i: int, entry: dict[str, Any], inverses: bool) -> None:
    layer = refresher.layers[i]
    try:
        source, method = entry.get("source", "activations"), entry.get("method", layer.method)
        if source != layer.source:
            raise ValueError(f"they are of {source}, by {method}, and {layer.method} takes {layer.source}")
        if i in refresher.averages.of:
            average = refresher.averages.of[i]
            _take(average.a, entry["a"])
            _take(average.g, entry["g"])
            average.updates = int(entry["updates"])
        if i in refresher.plan.inverses.pieces:
            carried = layer.method == method and len(moments.of(i)) > 0
            if inverses or carried:  # moments may be in the basis of inverses that are about to be replaced
                _take(refresher.inverses.of(i), entry["inverse"])
            if carried:
                _take(moments.of(i), entry["moments"])
            else:
                moments.of(i).zero_()
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"the factors of {layer.name} do not fit this job: {error}") from error


def _take(into: Tensor, saved: Tensor) -> None:
    if into.shape != saved.shape:
        raise ValueError(f"shape {tuple(saved.shape)} in the checkpoint, {tuple(into.shape)} here")
    into.copy_(saved)
