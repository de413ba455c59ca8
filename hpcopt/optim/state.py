"""An optimizer's state in a checkpoint: it goes on under the settings of the job that resumes, which may be new."""

from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer

from hpcopt.errors import CheckpointError


def optimizer_state(optimizer: Optimizer) -> dict[str, Any]:
    """Torch's ``state_dict``, and the optimizer's name."""
    state = optimizer.state_dict()
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{type(optimizer).__name__}.state_dict() gave {type(state).__name__}, not a dictionary")
    return {"optimizer": type(optimizer).__name__, **state}


def restore_optimizer(optimizer: Optimizer, saved: Mapping[str, Any], *, settings: bool = False) -> None:
    """Take over the state of every parameter, and none of the settings: those stay as the optimizer was built.

    Torch's own ``load_state_dict`` brings the old settings back, and a changed job would go on under them in silence.
    Somebody's own loop needs them: its schedulers move the learning rate where it stands.

    Args:
        optimizer: new, of the same parameters in the same groups.
        saved: an ``optimizer_state``, or a plain ``state_dict``.
        settings: take them over, too.

    Raises:
        CheckpointError: the state is another optimizer's, or of other parameters.
    """
    own = optimizer.state_dict()["param_groups"]
    ours = type(optimizer).__name__
    try:
        groups = saved["param_groups"]
        theirs = saved.get("optimizer") or _name(groups, own, ours)
        if theirs != ours:
            raise CheckpointError(
                f"the checkpoint holds the state of the optimizer {theirs}, and the job's is {ours}: "
                f"go on with {theirs}, or start over with --fresh"
            )
        pairs = zip(own, groups, strict=True)
        kept = [dict(group) if settings else {**mine, "params": group["params"]} for mine, group in pairs]
        optimizer.load_state_dict({"state": saved["state"], "param_groups": kept})
    except (KeyError, TypeError, ValueError, AttributeError) as cause:
        raise CheckpointError(
            f"the checkpoint's state of the optimizer does not fit the job's parameters ({cause!r}): "
            "go on with the model that it was made with, or start over with --fresh"
        ) from cause


def _name(groups: list[dict[str, Any]], own: list[dict[str, Any]], ours: str) -> str:
    """Name of the optimizer that left no name, told by its settings."""
    foreign = sorted({key for group in groups for key in group} ^ {key for group in own for key in group})
    return f"with other settings ({', '.join(foreign)})" if foreign else ours
