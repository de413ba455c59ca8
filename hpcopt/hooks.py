"""Hooks of gradients that do not keep their listener alive.

torch holds a parameter's hooks where the garbage collector does not look: a listener that knows the parameter would
stay for ever, with the network, its buffers and its thread, however often a program makes a new one.
"""

from collections.abc import Callable
from weakref import ref

from torch import nn
from torch.utils.hooks import RemovableHandle


def after_accumulation(p: nn.Parameter, listener: Callable[[nn.Parameter], None]) -> RemovableHandle:
    """Call a listener whenever a backward pass has added to the gradient of ``p``.

    Args:
        listener: a method; it is called for as long as its object is used elsewhere.
    """
    owner, method = ref(listener.__self__), listener.__func__  # type: ignore[attr-defined]

    def call(changed: nn.Parameter) -> None:
        if (living := owner()) is not None:
            method(living, changed)

    handle: RemovableHandle = p.register_post_accumulate_grad_hook(call)  # type: ignore[no-untyped-call]
    return handle
