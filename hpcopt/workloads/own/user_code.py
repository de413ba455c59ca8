"""Somebody's own code: what a dotted name stands for, called or made, and held to what others ask of it."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from hpcopt.errors import DataError, HpcoptError, JobError
from hpcopt.held import require_methods
from hpcopt.plugins import import_object
from hpcopt.workloads.own.theirs import theirs


def made(name: str, arguments: Mapping[str, Any], what: str, kind: type[HpcoptError] = DataError) -> Any:
    """What a dotted name stands for: called with the arguments if it is a class or a function, else as it is.

    Raises:
        kind: it cannot be imported or called.
    """
    try:
        found = import_object(name)
    except ValueError as error:
        raise kind(f"{what}: {error}") from None
    if isinstance(found, type) or (callable(found) and not isinstance(found, torch.nn.Module)):
        with theirs(what, kind):
            return found(**arguments)
    if arguments:
        raise kind(f"{what} is {type(found).__name__}, made already: it takes no arguments")
    return found


def require_network(model: nn.Module, what: str) -> None:
    """Hold somebody's network to what others ask of it.

    Args:
        what: is held, for the message.

    Raises:
        JobError: a method is none, or fails, or ``state_dict`` gives no tensors by name.
    """
    require_methods(model, nn.Module)
    for module in model.modules():
        require_methods(module, nn.Module)
    with theirs(f"{what}: state_dict()", JobError):
        state = model.state_dict()
    if not isinstance(state, Mapping):
        raise JobError(f"{what}: state_dict() gave {type(state).__name__}, not tensors by name")
    with theirs(f"{what}: its parameters and buffers", JobError):
        _ = list(model.parameters()), list(model.named_parameters()), list(model.buffers()), list(model.named_modules())
    with theirs(f"{what}: eval() and train()", JobError):
        training = model.training
        model.eval()
        model.train(training)


def function(name: str, arguments: Mapping[str, Any], what: str, kind: type[HpcoptError] = JobError) -> Any:
    """The function that a dotted name stands for, with some arguments given; that of a class is an object of it.

    Raises:
        kind: there is none.
    """
    try:
        found = import_object(name)
    except ValueError as error:
        raise kind(f"{what}: {error}") from None
    if isinstance(found, type):
        with theirs(what, kind):
            return found(**arguments)
    if arguments and not callable(found):
        raise kind(f"{what} is {type(found).__name__}, not a function: it takes no arguments")
    return partial(found, **arguments) if arguments else found
