"""Parameters by patterns of their names: rates, decay and optimizers of their own."""

from collections.abc import Callable, Mapping, Sequence
from difflib import SequenceMatcher
from fnmatch import fnmatchcase
from typing import Any, Self

from pydantic import Field, model_validator
from torch import nn
from torch.optim import Optimizer

from hpcopt.config import Config
from hpcopt.errors import JobError
from hpcopt.optim.any_torch import AnyOptimizer
from hpcopt.optim.config import OptimizerConfig, Outcome
from hpcopt.optim.groups import FACTOR, scale_learning_rate
from hpcopt.optim.several import Several, parts_of


class GroupConfig(Config):
    """Parameters, and what is different for them. The first group whose pattern matches a parameter has it."""

    pattern: str = Field(description='of parameter names, such as "*.bias" or "encoder.layers.[01].*"')
    lr: float | None = Field(None, gt=0, description="learning rate at the top of the schedule")
    lr_factor: float | None = Field(None, ge=0, description="learning rate over the optimizer's")
    weight_decay: float | None = Field(None, ge=0, description="of all of them, vectors too")
    optimizer: AnyOptimizer | None = Field(None, description="optimizer of these, with a rate and decay of its own")

    @model_validator(mode="after")
    def _says_something_once(self) -> Self:
        given = [key for key in ("lr", "lr_factor", "weight_decay", "optimizer") if getattr(self, key) is not None]
        if not given:
            raise ValueError("say what is different: lr, lr_factor, weight_decay or optimizer")
        if "optimizer" in given and len(given) > 1:
            raise ValueError(f"{given[0]} of these stands in the optimizer's own section")
        if {"lr", "lr_factor"} <= set(given):
            raise ValueError("lr or lr_factor, not both")
        return self


def build_by_pattern(
    config: OptimizerConfig,
    groups: Sequence[GroupConfig],
    named: Sequence[tuple[str, nn.Parameter]],
    signs: Callable[[float], Outcome] | None = None,
) -> Optimizer:
    """Make the optimizer of a network's parameters; those of no group go by the optimizer's own settings.

    Args:
        config: the optimizer.
        groups: exceptions; each parameter is in the first that matches.
        named: parameters by name.
        signs: for ``OptimizerConfig.build_on_signs``; None: gradients are what it steps by.

    Raises:
        JobError: on all ranks: a pattern has no parameters, or the optimizer has no weight decay, or no groups.
    """
    group_of = assigned(groups, [name for name, _ in named])
    own = {p: groups[i] for name, p in named if (i := group_of.get(name)) is not None}
    rest = [p for _, p in named if p not in own or own[p].optimizer is None]
    optimizers = []
    if rest or not groups:
        base = config.build(rest) if signs is None else config.build_on_signs(rest, signs)
        _require_groups(base, rest)
        for part in parts_of(base) if groups else ():
            part.param_groups[:] = _split(part, own, config.lr)
        optimizers = parts_of(base)
    for group in groups:
        if group.optimizer is not None:
            built = group.optimizer.build(members := [p for p, found in own.items() if found is group])
            _require_groups(built, members)
            optimizers.append(scale_learning_rate(built, group.optimizer.lr / config.lr))
    return optimizers[0] if len(optimizers) == 1 else Several(optimizers)


def assigned(groups: Sequence[GroupConfig], names: Sequence[str]) -> dict[str, int]:
    """The group of each name that is in one.

    Raises:
        JobError: on all ranks: a pattern has none; the message names the nearest.
    """
    found: dict[str, int] = {}
    for i, group in enumerate(groups):
        matches = [name for name in names if fnmatchcase(name, group.pattern)]
        if not matches:
            near = ", ".join(_nearest(group.pattern, names))
            raise JobError(
                f'[[solver.groups]] pattern = "{group.pattern}" matches no parameter; the nearest are {near}'
            ).everywhere()
        if all(name in found for name in matches):
            before = ", ".join(f'"{p}"' for p in dict.fromkeys(groups[found[name]].pattern for name in matches))
            raise JobError(
                f'[[solver.groups]] pattern = "{group.pattern}" is left without parameters: all that it matches are '
                f"in groups before it, {before}"
            ).everywhere()
        for name in matches:
            found.setdefault(name, i)
    return found


def describe(optimizer: Optimizer, named: Sequence[tuple[str, nn.Parameter]]) -> str:
    """The groups for a person, a line each: how many parameters, and what moves them by which settings."""
    names = {p: name for name, p in named}
    lines = []
    for part in parts_of(optimizer):
        for group in part.param_groups:
            own, decay = group["params"], group.get("weight_decay")
            first = f"{names[own[0]]}{f' to {names[own[-1]]}' if len(own) > 1 else ''}" if own else ""
            lines.append(
                f"{type(part).__name__}, rate x {group.get(FACTOR, 1.0):g}"
                + ("" if decay is None else f", decay {decay:g}")
                + f": {len(own)} tensors, {sum(p.numel() for p in own):,} values, {first}"
            )
    return "\n".join(lines)


def _require_groups(optimizer: Optimizer, given: Sequence[nn.Parameter]) -> None:
    """Raise JobError if an optimizer has no groups of these parameters: somebody's that has not begun as torch's do."""
    known = {id(p) for p in given}
    for part in parts_of(optimizer):
        groups = getattr(part, "param_groups", None)
        if not isinstance(groups, list) or not all(_is_group(group, known) for group in groups):
            raise JobError(
                f"{type(part).__module__}:{type(part).__qualname__} has no param_groups of the parameters it was built "
                "for: its __init__ calls super().__init__(parameters, defaults)"
            ).everywhere()


def _is_group(group: object, known: set[int]) -> bool:
    members = group.get("params") if isinstance(group, dict) else None
    return isinstance(members, list) and all(id(p) in known for p in members)


def _split(part: Optimizer, own: Mapping[nn.Parameter, GroupConfig], lr: float) -> list[dict[str, Any]]:
    """The groups of an optimizer, those of each pattern apart."""
    groups = []
    for group in part.param_groups:
        members: dict[int, list[nn.Parameter]] = {}
        for p in group["params"]:
            members.setdefault(id(own.get(p)), []).append(p)
        groups += [{**group, "params": ps, **_changes(part, group, own.get(ps[0]), lr)} for ps in members.values()]
    return groups


def _changes(part: Optimizer, group: Mapping[str, Any], own: GroupConfig | None, lr: float) -> dict[str, float]:
    if own is None:
        return {}
    changes = {}
    if own.weight_decay is not None:
        if "weight_decay" not in group:
            raise JobError(
                f'[[solver.groups]] pattern = "{own.pattern}": {type(part).__name__} has no weight_decay'
            ).everywhere()
        changes["weight_decay"] = own.weight_decay
    if own.lr is not None:
        changes[FACTOR] = own.lr / lr
    if own.lr_factor is not None:
        changes[FACTOR] = own.lr_factor * group.get(FACTOR, 1.0)
    return changes


def _nearest(pattern: str, names: Sequence[str], count: int = 3) -> list[str]:
    """Names that a pattern may have meant: those that have the longest piece of it."""
    core = pattern.strip("*.?[]")
    return sorted(names, key=lambda name: -SequenceMatcher(None, core, name).find_longest_match().size)[:count]
