"""Another meaning of torch's functions, while a module runs."""

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle


def while_running(watched: nn.Module, mode: Callable[[], TorchFunctionMode | None]) -> list[RemovableHandle]:
    """Enter what ``mode()`` gives before each forward pass of a module, and leave it after, also by an exception.

    Returns:
        What ends that by its ``remove()``.
    """
    entered: list[TorchFunctionMode | None] = []

    def enter(module: nn.Module, _args: Any) -> None:
        entered.append(mode() if module is watched else None)  # a copy of the module has these hooks too
        if entered[-1] is not None:
            entered[-1].__enter__()  # type: ignore[no-untyped-call]

    def leave(_module: nn.Module, _args: Any, _output: Any) -> None:
        left = entered.pop() if entered else None
        if left is not None:
            left.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    return [watched.register_forward_pre_hook(enter), watched.register_forward_hook(leave, always_call=True)]
