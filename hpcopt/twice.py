"""Attention that can be differentiated twice: torch's fused kernels have a first derivative only."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode


class DifferentiableTwice(TorchFunctionMode):
    """Within it, and in this thread, attention is made of products and a softmax.

    with DifferentiableTwice():
        loss = criterion(model(x), y)
    torch.autograd.grad(loss, parameters, create_graph=True)   # has derivatives of its own
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return torch.ops.aten._scaled_dot_product_attention_math(*args, **named)[0]
        if func is F.multi_head_attention_forward and named.get("need_weights") is False:
            return func(*args, **named | {"need_weights": True})[0], None  # the weights come from no fused kernel
        return func(*args, **named)
