"""Keep torch's compiler out of ranks that compile nothing.

The first ``torch.optim.Optimizer`` imports ``torch._dynamo`` and with it sympy: some 800 modules, 69 MB and 0.6 s on
every rank, only to mark functions that a compiler should leave alone. Until somebody asks for more than those marks, a
stand-in takes the module's place; whoever does ask (``torch.compile``, activation checkpointing) gets the real one,
imported there and then. Only the training command does this, in processes of its own: a library that is imported leaves
torch as it is.
"""

import importlib
import sys
import types
from collections.abc import Callable
from typing import Any, TypeVar

import torch

_NAME = "torch._dynamo"
Hook = TypeVar("Hook", bound=Callable[..., Any])


class _DynamoStandIn(types.ModuleType):
    """The two marks that torch's optimizers use, without a compiler that would read them."""

    def disable(self, fn: Callable[..., Any] | None = None, *_: Any, **__: Any) -> Callable[..., Any]:
        return fn if fn is not None else lambda function: function

    def graph_break(self, *_: Any, **__: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__path__":  # introspection of sys.modules is no request for the compiler
            raise AttributeError(name)
        return getattr(_real_dynamo(), name)


def keep_dynamo_out() -> None:
    """Put the stand-in in torch._dynamo's place, unless the real one is already there. Call before the first optimizer
    is made.
    """
    if _NAME not in sys.modules:
        stand_in = _DynamoStandIn(_NAME)
        sys.modules[_NAME] = stand_in
        torch._dynamo = stand_in


def uncompiled(hook: Hook, model: torch.nn.Module) -> Hook:
    """A hook that the compiler of a model leaves alone, if it has one: it would compile it anew for every tensor."""
    if not any(m._compiled_call_impl or type(m).__name__ == "OptimizedModule" for m in model.modules()):
        return hook
    left_alone: Hook = torch.compiler.disable(hook)  # type: ignore[no-untyped-call]
    return left_alone


def _real_dynamo() -> types.ModuleType:
    if isinstance(sys.modules.get(_NAME), _DynamoStandIn):
        del sys.modules[_NAME]
        del torch._dynamo
    return importlib.import_module(_NAME)
