"""``nn.MultiheadAttention``: its projections are plain linear maps, but it calls no module for them.

While it runs, the linear maps it makes are watched, and those that use its own weights are told to the layers.
"""

from collections.abc import Callable
from dataclasses import replace
from types import FunctionType
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from hpcopt.solvers.kaisa.layers.layer import Layer, Options, Sums
from hpcopt.solvers.kaisa.layers.running import while_running


class PackedProjection(Layer):
    """The query, key and value projections in one weight, shape (3 E, E): a batch of three, each with both factors of
    its own. A call may use all three (self-attention), or some.
    """

    def __init__(self, name: str, module: nn.MultiheadAttention, options: Options) -> None:
        assert module.in_proj_weight is not None
        options = replace(options, batch_dim=1)  # it projects (positions, samples, E), whatever batch_first says
        self._setup(name, module.in_proj_weight, module.in_proj_bias, options, batch=3)

    def record_part(self, sums: Sums, x: Tensor, gradient: Tensor, first: int) -> None:
        """Add one call that computed the projections from ``first`` on, as many as the gradient is wide."""
        count = gradient.shape[-1] // self.outputs
        rows, _ = self._rows(x.detach(), "mean")
        g, weight = self._rows(gradient.detach(), "sum")
        a, b = (s.view(3, len(s) // 3, s.shape[1])[first : first + count].flatten(0, 1) for s in (sums.a, sums.g))
        parts = Sums(a, b)
        self._add_input_rows(parts, rows.expand(count, *rows.shape))
        self._add_gradient_rows(parts, g.view(len(g), count, -1).transpose(0, 1), weight)
        sums.rows += parts.rows * count / 3

    def record(self, sums: Sums, x: Tensor, gradient: Tensor) -> None:
        self.record_part(sums, x, gradient, 0)


class WatchedAttention:
    """The layers of one attention module, and the hooks that tell of their use."""

    def __init__(self, name: str, module: nn.MultiheadAttention, options: Options) -> None:
        self.packed = PackedProjection(f"{name}.in_proj", module, options)
        self.output = Layer(f"{name}.out_proj", module.out_proj, options)
        self._module = module

    @property
    def layers(self) -> list[Layer]:
        """Input projections, output projection."""
        return [self.packed, self.output]

    def watch(
        self, active: Callable[[], bool], on_use: Callable[[Layer, Tensor, Tensor, int], None]
    ) -> list[RemovableHandle]:
        """Call ``on_use(layer, input, output, first)`` at every use while active; first: the first of the three
        projections in that use. Give what ends it.
        """
        told = self._told(on_use)
        return while_running(self._module, lambda: _LinearCalls(told) if active() else None)

    def _told(self, on_use: Callable[[Layer, Tensor, Tensor, int], None]) -> Callable[[Tensor, Tensor, Tensor], None]:
        def told(x: Tensor, weight: Tensor, y: Tensor) -> None:
            if not y.requires_grad:
                return
            if weight is self.output.weight:
                on_use(self.output, x, y, 0)
            elif weight is self.packed.weight or weight._base is self.packed.weight:
                on_use(self.packed, x, y, weight.storage_offset() // self.packed.inputs // self.packed.outputs)

        return told


class _LinearCalls(TorchFunctionMode):
    """While entered, in this thread, attention runs as a copy of torch's own function that tells of its linear maps.

    The function looks its callees up among its module's names: the copy has names of its own, with another ``linear``.
    """

    def __init__(self, told: Callable[[Tensor, Tensor, Tensor], None]) -> None:
        super().__init__()

        def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
            y = F.linear(x, weight, bias)
            told(x, weight, y)
            return y

        names = {**vars(F), "linear": linear}
        for name in ("_in_projection_packed", "_in_projection", "multi_head_attention_forward"):
            own = getattr(F, name)
            names[name] = FunctionType(own.__code__, names, name, own.__defaults__, own.__closure__)
        self._attention = names["multi_head_attention_forward"]

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        called = self._attention if function is F.multi_head_attention_forward else function
        return called(*args, **(kwargs or {}))
