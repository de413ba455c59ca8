"""Layers whose products take few bits: activations and weights by deterministic rounding forward, output gradients by
stochastic rounding backward (Chen et al. 2020, arXiv:2010.14298).

Forward ``y = f(x^, w^) + b``. w^ is w on a uniform grid of 2^bits values from its smallest to its largest value, 0
included; x^ is x, each sample on a grid from its smallest to its largest value. The derivative of rounding is taken as
1 (straight-through). The paper's grid for x is that of a whole batch; here nothing depends on which samples a rank has,
in training or in evaluation. ``hpcopt.lowbit.products`` has the way back. The bias is exact. Integers are held as
floating-point numbers, and products are those of that type.
"""

from abc import ABC
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpcopt.lowbit.products import Bits, Convolution, MatrixProduct, Product, on_grid, rounded_product
from hpcopt.lowbit.quantizers import grid


@dataclass(frozen=True)
class Added:
    """What a product's rounding did to one output gradient on its way to an activation.

    Attributes:
        variance: added, the sum over values.
        squared_norm: of the gradient.
        range_ratio: the largest of the samples' ranges over their median.
    """

    variance: float
    squared_norm: float
    range_ratio: float


class QuantizedLayer(nn.Module, ABC):
    """What the layers share; each is the torch layer that it stands for, with the same parameters.

    Attributes:
        bits: how it rounds.
        added: of backward passes, while ``added_variance`` watches; else None.
    """

    bits: Bits
    added: list[Added] | None = None

    def product(self, product: Product, x: Tensor, other: Tensor, *, weights: bool = True) -> Tensor:
        """A product, rounded as ``bits`` say; ``weights``: the other operand is a weight, else an activation."""
        x, other = on_grid(x, self.bits.forward), on_grid(other, self.bits.forward, whole=weights)
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            x, other = x.to(dtype), other.to(dtype)
        if self.bits.gradient is None or not self.training or not torch.is_grad_enabled():
            return product(x, other)
        return rounded_product(product, x, other, self.bits, weights, self)

    def note(self, rows: Tensor) -> None:
        """Keep what rounding adds to a gradient, if that is watched."""
        if self.added is None or self.bits.gradient is None:
            return
        low, high = rows.aminmax(dim=1)
        ranges = high - low
        variance = grid(rows, self.bits.gradient, self.bits.backward).variance(rows)
        squares = float(rows.double().square().sum())
        self.added.append(Added(float(variance), squares, float(ranges.max() / ranges.median())))


class QuantizedLinear(QuantizedLayer, nn.Linear):
    """A ``torch.nn.Linear`` in few bits."""

    def __init__(self, old: nn.Linear, bits: Bits) -> None:
        """Take over a layer's parameters."""
        super().__init__(old.in_features, old.out_features, bias=old.bias is not None, device="meta")
        self.weight, self.bias, self.bits = old.weight, old.bias, bits

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features); rows of the gradient are those of the first dimension."""
        out = self.product(MatrixProduct(), x, self.weight)
        return out if self.bias is None else out + self.bias


class QuantizedConv2d(QuantizedLayer, nn.Conv2d):
    """A ``torch.nn.Conv2d`` in few bits."""

    def __init__(self, old: nn.Conv2d, bits: Bits) -> None:
        """Take over a layer's parameters."""
        super().__init__(
            old.in_channels,
            old.out_channels,
            old.kernel_size,  # type: ignore[arg-type]
            old.stride,  # type: ignore[arg-type]
            old.padding,  # type: ignore[arg-type]
            old.dilation,  # type: ignore[arg-type]
            old.groups,
            old.bias is not None,
            old.padding_mode,
            device="meta",
        )
        self.weight, self.bias, self.bits = old.weight, old.bias, bits

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, in_channels, height, width), or without n; a sample is a row of the gradient."""
        if x.dim() == 3:
            return self.forward(x[None])[0]
        padding = (0, 0) if self._pads_first else tuple(map(int, self.padding))
        if self._pads_first:
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            x = F.pad(x, self._reversed_padding_repeated_twice, mode=mode)
        out = self.product(Convolution(self.stride, padding, self.dilation, self.groups), x, self.weight)
        return out if self.bias is None else out + self.bias[:, None, None]

    @property
    def _pads_first(self) -> bool:
        return isinstance(self.padding, str) or self.padding_mode != "zeros"


@contextmanager
def added_variance(model: nn.Module) -> Iterator[dict[str, list[Added]]]:
    """Watch backward passes: what rounding adds to each layer's output gradients, on their way to activations, by the
    layer's name; in the order of the passes, and of a pass's products. A layer whose input needs no gradient has none.
    """
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, QuantizedLayer)}
    found: dict[str, list[Added]] = {name: [] for name in layers}
    for name, layer in layers.items():
        layer.added = found[name]
    try:
        yield found
    finally:
        for layer in layers.values():
            layer.added = None
