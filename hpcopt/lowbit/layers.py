"""Layers whose products take few bits: activations and weights by deterministic rounding forward, output gradients by
stochastic rounding backward (Chen et al. 2020, arXiv:2010.14298).

Forward ``y = f(x^, w^) + b``. w^ is w on a uniform grid of 2^bits values from its smallest to its largest value, 0
included; x^ is x, each sample on a grid from its smallest to its largest value. The derivative of rounding is taken as
1 (straight-through). The paper's grid for x is that of a whole batch; here nothing depends on which samples a rank has,
in training or in evaluation.

Backward the output gradient is rounded twice ("biprecision"): a PTQ copy in 8 bits makes the weight's gradient, a copy
of any kind and bits the gradient of the input, which travels on. The bias is exact. Integers are held as floating-point
numbers, and products are those of that type. Draws come from the device's own generator, which checkpoints keep.
"""

from abc import ABC
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from hpcopt.lowbit.quantizers import Kind, grid, quantized

WEIGHT_GRADIENT_BITS = 8


@dataclass(frozen=True)
class Bits:
    """How a layer rounds.

    Attributes:
        forward: bits of activations and weights.
        gradient: the quantizer of output gradients; None leaves them exact.
        backward: bits of the copy that makes the input's gradient.
    """

    forward: int = 8
    gradient: Kind | None = "bhq"
    backward: int = 5


@dataclass(frozen=True)
class Added:
    """What a layer's rounding did to one output gradient on its way to the input.

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

    def _product(self, product: "Product", x: Tensor, weight: Tensor) -> Tensor:
        """``product`` of both, rounded as ``bits`` say."""
        x, weight = self._rounded_input(x), self._rounded_weight(weight)
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            x, weight = x.to(dtype), weight.to(dtype)
        if self.bits.gradient is None or not self.training or not torch.is_grad_enabled():
            return product(x, weight)
        out: Tensor = _Biprecision.apply(x, weight, product, self)  # type: ignore[no-untyped-call]
        return out

    def _rounded_input(self, x: Tensor) -> Tensor:
        if not x.numel():
            return x
        rows = _rows(x.detach())
        low, high = (end.view(-1, *[1] * (x.dim() - 1)) for end in rows.aminmax(dim=1))
        return _straight_through(x, low, high, self.bits.forward)

    def _rounded_weight(self, weight: Tensor) -> Tensor:
        low, high = weight.detach().aminmax()
        return _straight_through(weight, low.clamp(max=0), high.clamp(min=0), self.bits.forward)


class QuantizedLinear(QuantizedLayer, nn.Linear):
    """A ``torch.nn.Linear`` in few bits."""

    def __init__(self, old: nn.Linear, bits: Bits) -> None:
        """Take over a layer's parameters."""
        super().__init__(old.in_features, old.out_features, bias=old.bias is not None, device="meta")
        self.weight, self.bias, self.bits = old.weight, old.bias, bits

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features); rows of the gradient are those of the first dimension."""
        out = self._product(MatrixProduct(), x, self.weight)
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
        out = self._product(Convolution(self.stride, padding, self.dilation, self.groups), x, self.weight)
        return out if self.bias is None else out + self.bias[:, None, None]

    @property
    def _pads_first(self) -> bool:
        return isinstance(self.padding, str) or self.padding_mode != "zeros"


class Product(Protocol):
    """A bilinear map of an input and a weight."""

    def __call__(self, x: Tensor, weight: Tensor) -> Tensor: ...

    def to_input(self, gradient: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """The gradient of x from that of the product."""

    def to_weight(self, gradient: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """The gradient of the weight from that of the product."""


@dataclass(frozen=True)
class MatrixProduct:
    """``x w^T``."""

    def __call__(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight)

    def to_input(self, gradient: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        return gradient @ weight

    def to_weight(self, gradient: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        found: Tensor = gradient.reshape(-1, gradient.shape[-1]).T @ x.reshape(-1, x.shape[-1])
        return found


@dataclass(frozen=True)
class Convolution:
    """Of pictures, as ``torch.nn.functional.conv2d``."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def __call__(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(x, weight, None, self.stride, self.padding, self.dilation, self.groups)

    def to_input(self, gradient: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        return self._backward(gradient, x, weight, 0)

    def to_weight(self, gradient: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        return self._backward(gradient, x, weight, 1)

    def _backward(self, gradient: Tensor, x: Tensor, weight: Tensor, which: int) -> Tensor:
        wanted = [which == 0, which == 1, False]
        where = (self.stride, self.padding, self.dilation, False, (0, 0), self.groups)
        found: Tensor = torch.ops.aten.convolution_backward(gradient, x, weight, None, *where, wanted)[which]
        return found


class _StraightThrough(Function):
    """To the nearest of 2^bits values from low to high; the gradient passes as it is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: Tensor, high: Tensor, bits: int) -> Tensor:
        step = (high - low) / (2**bits - 1)
        integers: Tensor = ((x - low) / step.where(step > 0, 1.0)).round()
        on_grid: Tensor = integers * step + low
        return on_grid

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gradients[0], None, None, None


class _Biprecision(Function):
    """A product whose output gradient is rounded twice: in 8 bits for the weight, as the layer says for the input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, product: Product, layer: QuantizedLayer) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.product, ctx.layer = product, layer
        return product(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        gradient, bits = gradients[0], ctx.layer.bits
        rows = _rows(gradient)
        rows = rows.float() if rows.dtype in (torch.bfloat16, torch.float16) else rows

        def copy(kind: Kind, count: int) -> Tensor:
            return quantized(rows, kind, count).view(gradient.shape).to(gradient.dtype)

        to_input = to_weight = None
        if ctx.needs_input_grad[0]:
            to_input = ctx.product.to_input(copy(bits.gradient, bits.backward), x, weight)
            if ctx.layer.added is not None and rows.numel():
                ctx.layer.added.append(_added(rows, bits))
        if ctx.needs_input_grad[1]:
            to_weight = ctx.product.to_weight(copy("ptq", WEIGHT_GRADIENT_BITS), x, weight)
        return to_input, to_weight, None, None


def _rows(x: Tensor) -> Tensor:
    """A sample a row, (N, D)."""
    return x.flatten(1) if x.dim() > 1 else x[None]


def _straight_through(x: Tensor, low: Tensor, high: Tensor, bits: int) -> Tensor:
    out: Tensor = _StraightThrough.apply(x, low, high, bits)  # type: ignore[no-untyped-call]
    return out


def _added(rows: Tensor, bits: Bits) -> Added:
    assert bits.gradient is not None
    low, high = rows.aminmax(dim=1)
    ranges = high - low
    variance = grid(rows, bits.gradient, bits.backward).variance(rows)
    return Added(float(variance), float(rows.double().square().sum()), float(ranges.max() / ranges.median()))


@contextmanager
def added_variance(model: nn.Module) -> Iterator[dict[str, list[Added]]]:
    """Watch backward passes: what rounding adds to each layer's output gradient, on its way to the layer's input, by
    the layer's name; in the order of the passes. A layer whose input needs no gradient has none.
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
