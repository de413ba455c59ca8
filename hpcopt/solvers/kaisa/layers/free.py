"""Weights used without their module, as an output layer that shares an embedding's often is written::

    F.linear(h, self.words.weight)    or    h @ self.words.weight.T

While the model's forward runs, products with a known weight are watched; what a module's own forward does, its hook
tells of, and is not counted again.
"""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from hpcopt.solvers.kaisa.layers.embedding import AS_OUTPUT, Embedding
from hpcopt.solvers.kaisa.layers.layer import WITHOUT_BIAS, Layer
from hpcopt.solvers.kaisa.layers.running import while_running

OnUse = Callable[[Layer, Tensor, Tensor, int], None]

PRODUCTS = (torch.matmul, torch.mm, Tensor.matmul, Tensor.mm, Tensor.__matmul__)


class FreeUses:
    """The linear maps that a model makes of known weights.

    Attributes:
        layers: whose weights they are; linear maps and embeddings.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = layers
        self._last: weakref.ref[Tensor] | None = None

    def told(self, output: Tensor) -> bool:
        """Whether ``output`` is that of the last use that was told of."""
        return self._last is not None and self._last() is output

    def watch(self, model: nn.Module, active: Callable[[], bool], on_use: OnUse) -> list[RemovableHandle]:
        """Call ``on_use(layer, input, output, part)`` at every use in the model's forward while active; give
        what ends it.
        """

        def products() -> "_Products | None":
            of_weight = {id(layer.weight): layer for layer in self.layers}

            def tell(x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor) -> None:
                layer = of_weight.get(id(weight))
                if layer is None or not y.requires_grad:
                    return
                self._last = weakref.ref(y)
                if isinstance(layer, Embedding):
                    layer.is_output = True
                    on_use(layer, x, y, AS_OUTPUT)
                else:
                    on_use(layer, x, y, WITHOUT_BIAS if bias is None and layer.bias is not None else 0)

            return _Products(tell) if active() else None

        return while_running(model, products)


class _Products(TorchFunctionMode):
    """While entered, in this thread, tells of products with matrices: input, matrix, bias, output."""

    def __init__(self, tell: Callable[[Tensor, Tensor, Tensor | None, Tensor], None]) -> None:
        super().__init__()
        self._tell = tell

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        y = function(*args, **(kwargs or {}))
        if function is F.linear:
            given = dict(zip(("input", "weight", "bias"), args, strict=False)) | (kwargs or {})
            self._tell(given["input"], given["weight"], given.get("bias"), y)
        elif function in PRODUCTS and len(args) == 2:
            x, matrix = args
            weight = matrix._base
            if weight is not None and matrix.shape == weight.shape[::-1] and matrix.stride() == weight.stride()[::-1]:
                self._tell(x, weight, None, y)
        return y
