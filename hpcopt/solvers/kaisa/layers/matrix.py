"""A weight whose method looks at its gradient, not at what goes through its module; the bias is left to the inner
optimizer.

Of a gradient W, shape (outputs, inputs), the factors are Shampoo's (Gupta, Koren, Singer 2018, arXiv:1802.09568)::

    A = W^T W,   G = W W^T

W is the global gradient, which every rank has: a layer's owner makes them alone, and nothing travels.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from hpcopt.solvers.kaisa import symmetric
from hpcopt.solvers.kaisa.layers.layer import FactorShape, Layer, Options

Source = Literal["activations", "inputs", "gradients", "nothing"]
LONG = 2


class Choice(NamedTuple):
    """How a module's parameters are treated.

    Attributes:
        method: by whose name.
        source: what that takes factors of: inputs and gradients of outputs, inputs alone, the weight's gradient, or
            nothing.
        alone: it takes the weight alone, and leaves the bias to the inner optimizer.
        short: a gradient's factor is left out where its side is at least ``LONG`` times as long as the other.
        heads: equal parts of the weight's rows, each a matrix of its own.
    """

    method: str = "cholesky"
    source: Source = "activations"
    alone: bool = False
    short: bool = False
    heads: int = 1


class Matrix(Layer):
    """The weight alone, flattened, with factors or without."""

    def __init__(self, name: str, weight: nn.Parameter, options: Options, choice: Choice, batch: int = 1) -> None:
        self._setup(name, weight, None, options, batch)
        self.method, self.source = choice.method, choice.source
        none = FactorShape(batch, 0, 1)
        if choice.source == "nothing" or (choice.short and self.inputs >= LONG * self.outputs):
            self.a = none
        if choice.source == "nothing" or (choice.short and self.outputs >= LONG * self.inputs):
            self.g = none

    @property
    def sums(self) -> int:
        return 0

    @property
    def factor_flops(self) -> float:
        return 2 * self.numel * sum(f.size for f in (self.a, self.g) if f.blocks)

    def factors_of(self, for_a: Tensor, for_g: Tensor) -> tuple[Tensor, Tensor]:
        """A of one gradient and G of another, packed, shape (matrices, packed length)."""
        rows = for_a, for_g.transpose(1, 2)
        both = [for_a.new_zeros(f.matrices, symmetric.packed_length(f.size)) for f in (self.a, self.g)]
        for shape, packed, x in zip((self.a, self.g), both, rows, strict=True):
            shape.add_rows(packed, x, narrow=self.options.narrow)
        return both[0], both[1]


def all_finite(layers: list[Layer]) -> Tensor:
    """Whether the gradients of layers that have one are, as a scalar."""
    norms = torch._foreach_norm([layer.weight.grad for layer in layers if layer.weight.grad is not None])
    return torch.stack(norms).isfinite().all() if norms else torch.tensor(True)
