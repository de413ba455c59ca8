"""Attention that can be differentiated twice: torch's fused kernels have a first derivative only."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode


class DifferentiableTwice(TorchFunctionMode):
    """Within it ``F.scaled_dot_product_attention`` is made of products and a softmax, in this thread.

    with DifferentiableTwice():
        loss = criterion(model(x), y)
    torch.autograd.grad(loss, parameters, create_graph=True)   # has derivatives of its own
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            return torch.ops.aten._scaled_dot_product_attention_math(*args, **(kwargs or {}))[0]
        return func(*args, **(kwargs or {}))
