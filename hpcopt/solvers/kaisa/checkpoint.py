"""A rank's part of a checkpoint: of each layer that it owns the factors, the inverse, and what the refresher has begun.

By the layer's name, so that any number of ranks, each with layers of its own, can take the parts of any other.
"""

from collections.abc import Sequence
from typing import Any

from hpcopt.errors import CheckpointError
from hpcopt.solvers.kaisa.refresh import Refresher


def rank_state(refresher: Refresher) -> dict[str, Any]:
    """This rank's part, without copies."""
    state = {}
    for i in refresher.plan.owned:
        average = refresher.averages.of[i]
        state[refresher.layers[i].name] = {
            "a": average.a,
            "g": average.g,
            "updates": average.updates,
            "inverse": refresher.inverses.of(i),
            **refresher.state(i),
        }
    return state


def restore(refresher: Refresher, parts: Sequence[dict[str, Any]], due: int | None) -> None:
    """Take what this rank needs from any number of ranks' parts; ``due`` is the refresher's own ``due_step``.

    Raises:
        CheckpointError: a layer is missing or of another size.
    """
    own: dict[int, dict[str, Any]] = {}
    missing = {refresher.layers[i].name for i in refresher.plan.worked}
    for part in parts:
        for i, layer in enumerate(refresher.layers):
            entry = part.get(layer.name)
            if entry is not None:
                _restore(refresher, i, entry)
                missing.discard(layer.name)
                if i in refresher.averages.of:
                    own[i] = entry
    if missing:
        raise CheckpointError(f"the checkpoint has no K-FAC factors of {', '.join(sorted(missing))}")
    refresher.restore(own, due)


def _restore(refresher: Refresher, i: int, entry: dict[str, Any]) -> None:
    try:
        if i in refresher.averages.of:
            average = refresher.averages.of[i]
            average.a.copy_(entry["a"])
            average.g.copy_(entry["g"])
            average.updates = int(entry["updates"])
        if i in refresher.plan.inverses.pieces:
            refresher.inverses.of(i).copy_(entry["inverse"])
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"the factors of {refresher.layers[i].name} do not fit this job: {error}") from error
