"""Names in a job that stand for objects of Python's, checked when the job is read."""

from typing import Annotated, Any

from pydantic import AfterValidator
from torch import nn

from hpcopt.plugins import import_object
from hpcopt.workloads.own.scores import BUILTIN


def importable(name: str) -> str:
    """A dotted name that Python finds."""
    if ":" not in name:
        raise ValueError(f'"{name}" is not of the form "package.module:name"')
    import_object(name)
    return name


def not_forked(kind: Any) -> Any:
    """A way to start a process that is safe beside MPI."""
    if kind == "fork":
        raise ValueError(
            "a fork of a process in which MPI has started shares the network's state with it, and both may hang or "
            'send wrong data: use "spawn", or "thread"'
        )
    return kind


Dotted = Annotated[str, AfterValidator(importable)]
FunctionOfTorch = Annotated[str, AfterValidator(lambda name: importable(name) if ":" in name else _function(name))]
ScoreName = Annotated[str, AfterValidator(lambda name: name if name in BUILTIN else _score(name))]


def _function(name: str) -> str:
    if not hasattr(nn.functional, name):
        raise ValueError(f'torch.nn.functional has no {name}; "package.module:name" is one of your own')
    return name


def _score(name: str) -> str:
    if ":" not in name:
        raise ValueError(f'there is no score "{name}"; there are {", ".join(BUILTIN)}, and "package.module:name"')
    return importable(name)
