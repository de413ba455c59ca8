"""An optimizer's state in a checkpoint: it goes on under the settings of the job that resumes, which may be new."""

import inspect
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from hpcopt.errors import CheckpointError
from hpcopt.optim.groups import FACTOR
from hpcopt.optim.several import name_of, parts_of


def optimizer_state(optimizer: Optimizer) -> dict[str, Any]:
    """Torch's ``state_dict``, and the optimizer's name."""
    state = optimizer.state_dict()
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{type(optimizer).__name__}.state_dict() gave {type(state).__name__}, not a dictionary")
    return {"optimizer": name_of(optimizer), **state}


def restore_optimizer(optimizer: Optimizer, saved: Mapping[str, Any], *, settings: bool = False) -> None:
    """Take over the state of every parameter, and none of the settings: those stay as the optimizer was built.

    Torch's own ``load_state_dict`` brings the old settings back, and a changed job would go on under them in silence.
    Somebody's own loop needs them: its schedulers move the learning rate where it stands. What a group has beside the
    settings, such as a count of steps, is state.

    Args:
        optimizer: new, of the same parameters in the same groups.
        saved: an ``optimizer_state``, or a plain ``state_dict``.
        settings: take them over, too.

    Raises:
        CheckpointError: the state is another optimizer's, or of other parameters.
    """
    own = optimizer.state_dict()["param_groups"]
    ours = name_of(optimizer)
    try:
        groups = saved["param_groups"]
        theirs = saved.get("optimizer") or _name(groups, own, ours)
        require_same_optimizer(theirs, optimizer)
        pairs = zip(own, groups, _settings(optimizer), strict=True)
        kept = [dict(group) if settings else {**mine, **_but(group, names)} for mine, group, names in pairs]
        _load(optimizer, {"state": saved["state"], "param_groups": kept})
    except (KeyError, TypeError, ValueError, AttributeError) as cause:
        raise CheckpointError(
            f"the checkpoint's state of the optimizer does not fit the job's parameters ({cause!r}): "
            "go on with the model that it was made with, or start over with --fresh"
        ) from cause


def require_same_optimizer(theirs: str, optimizer: Optimizer) -> None:
    """Raise CheckpointError if the optimizer is not the one that a state was saved of, by its name."""
    ours = name_of(optimizer)
    if theirs != ours:
        raise CheckpointError(
            f"the checkpoint holds the state of the optimizer {theirs}, and the job's is {ours}: "
            f"go on with {theirs}, or start over with --fresh"
        )


def _load(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """As torch's ``load_state_dict``, which turns text in a state into something else, and all dtypes into the
    parameter's; counts stay in main memory unless the optimizer wants them beside the parameter.
    """
    if type(optimizer).load_state_dict is not Optimizer.load_state_dict:
        optimizer.load_state_dict(state)
        return
    for hook in optimizer._optimizer_load_state_dict_pre_hooks.values():
        state = hook(optimizer, state) or state
    groups, places = [], dict[Any, tuple[Tensor, bool]]()
    for mine, group in zip(optimizer.param_groups, state["param_groups"], strict=True):
        on_device = bool(mine.get("fused") or mine.get("capturable"))
        places.update((i, (p, on_device)) for p, i in zip(mine["params"], group["params"], strict=True))
        groups.append({**group, "params": mine["params"]})
    states = defaultdict[Any, Any](dict)
    for index, own in state["state"].items():
        if index in places:
            p, on_device = places[index]
            states[p] = {k: v if k == "step" and not on_device else _beside(v, p) for k, v in own.items()}
        else:
            states[index] = own  # of no parameter
    optimizer.__setstate__({"state": states, "param_groups": groups})
    for told in optimizer._optimizer_load_state_dict_post_hooks.values():
        told(optimizer)


def _beside(value: Any, p: Tensor) -> Any:
    """A saved value where the parameter is."""
    if isinstance(value, Tensor):
        return value.to(p.device)
    if isinstance(value, list | tuple):
        return type(value)(_beside(inner, p) for inner in value)
    return {name: _beside(inner, p) for name, inner in value.items()} if isinstance(value, dict) else value


def _settings(optimizer: Optimizer) -> Sequence[set[str]]:
    """Of each group, the names of its settings: what its optimizer's constructor takes."""
    return [
        {FACTOR, *inspect.signature(type(part).__init__).parameters}
        for part in parts_of(optimizer)
        for _ in part.param_groups
    ]


def _but(group: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key == "params" or key not in names}


def changed_settings(optimizer: Optimizer, made: Sequence[Mapping[str, Any]]) -> list[str]:
    """Settings that an optimizer has otherwise than its groups were made with, a text each. What a schedule has done
    since the start is no change.
    """
    texts = []
    for index, (mine, now, names) in enumerate(zip(made, optimizer.param_groups, _settings(optimizer), strict=False)):
        for key in (key for key in now if key in names and key != "params"):
            first = "initial_lr" if key == "lr" else key
            old, new = (group.get(first, group.get(key)) for group in (mine, now))
            if str(old) != str(new):
                where = f" of group {index}" if len(made) > 1 else ""
                texts.append(f"{key} = {new}{where}, where the script has {old}")
    return texts


def _name(groups: list[dict[str, Any]], own: list[dict[str, Any]], ours: str) -> str:
    """Name of the optimizer that left no name, told by its settings."""
    foreign = sorted({key for group in groups for key in group} ^ {key for group in own for key in group})
    return f"with other settings ({', '.join(foreign)})" if foreign else ours
