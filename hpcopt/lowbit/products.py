"""Bilinear products whose operands lie on grids, and whose output gradients are rounded on their way back.

A product of a layer's input and its weight rounds the gradient twice ("biprecision", arXiv:2010.14298): a PTQ copy in 8
bits makes the weight's gradient, which ends there, a copy of any kind and bits that of the input, which travels on. A
product of two activations rounds it once, since both gradients travel on.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from hpcopt.lowbit.quantizers import Kind, nearest, nearest_between, quantized

WEIGHT_GRADIENT_BITS = 8


@dataclass(frozen=True)
class Bits:
    """How a product rounds.

    Attributes:
        forward: bits of activations and weights.
        gradient: the quantizer of output gradients; None leaves them exact.
        backward: bits of the copy that makes an activation's gradient.
    """

    forward: int = 8
    gradient: Kind | None = "bhq"
    backward: int = 5


class Product(Protocol):
    """A bilinear map of an input and another operand."""

    def __call__(self, x: Tensor, other: Tensor) -> Tensor: ...

    def to_input(self, gradient: Tensor, x: Tensor, other: Tensor) -> Tensor:
        """The gradient of x from that of the product."""

    def to_other(self, gradient: Tensor, x: Tensor, other: Tensor) -> Tensor:
        """The gradient of the other operand from that of the product."""


@dataclass(frozen=True)
class MatrixProduct:
    """``x w^T`` of x, (..., k), and w, (m, k)."""

    def __call__(self, x: Tensor, other: Tensor) -> Tensor:
        return F.linear(x, other)

    def to_input(self, gradient: Tensor, x: Tensor, other: Tensor) -> Tensor:
        return gradient @ other

    def to_other(self, gradient: Tensor, x: Tensor, other: Tensor) -> Tensor:
        found: Tensor = gradient.reshape(-1, gradient.shape[-1]).T @ x.reshape(-1, x.shape[-1])
        return found


@dataclass(frozen=True)
class BatchedProduct:
    """``x y^T`` of x, (..., s, d), and y, (..., t, d), matrix by matrix."""

    def __call__(self, x: Tensor, other: Tensor) -> Tensor:
        return x @ other.mT

    def to_input(self, gradient: Tensor, x: Tensor, other: Tensor) -> Tensor:
        return gradient @ other

    def to_other(self, gradient: Tensor, x: Tensor, other: Tensor) -> Tensor:
        return gradient.mT @ x


@dataclass(frozen=True)
class Convolution:
    """Of pictures, as ``torch.nn.functional.conv2d``."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def __call__(self, x: Tensor, other: Tensor) -> Tensor:
        return F.conv2d(x, other, None, self.stride, self.padding, self.dilation, self.groups)

    def to_input(self, gradient: Tensor, x: Tensor, other: Tensor) -> Tensor:
        return self._backward(gradient, x, other, 0)

    def to_other(self, gradient: Tensor, x: Tensor, other: Tensor) -> Tensor:
        return self._backward(gradient, x, other, 1)

    def _backward(self, gradient: Tensor, x: Tensor, other: Tensor, which: int) -> Tensor:
        wanted = [which == 0, which == 1, False]
        where = (self.stride, self.padding, self.dilation, False, (0, 0), self.groups)
        found: Tensor = torch.ops.aten.convolution_backward(gradient, x, other, None, *where, wanted)[which]
        return found


class Watcher(Protocol):
    """Who wants to know of the gradients that a product rounds for an activation."""

    def note(self, rows: Tensor) -> None:
        """A gradient, a sample a row, before it is rounded."""


def rows_of(x: Tensor) -> Tensor:
    """A sample a row, (N, D)."""
    return x.flatten(1) if x.dim() > 1 else x[None]


def on_grid(x: Tensor, bits: int, whole: bool = False) -> Tensor:
    """To the nearest of 2^bits values; the gradient passes as it is (straight-through).

    Args:
        x: of any shape.
        bits: of a value.
        whole: one grid for all, with 0 in it, as for weights; else one for each sample.
    """
    out: Tensor = _StraightThrough.apply(x, bits, whole)  # type: ignore[no-untyped-call]
    return out


def rounded_product(product: Product, x: Tensor, other: Tensor, bits: Bits, weights: bool, watcher: Watcher) -> Tensor:
    """The product of operands that are on their grids; backward its gradient is rounded.

    Args:
        product: of both.
        x: the input.
        other: a weight, or another activation.
        bits: how to round.
        weights: whether ``other`` is a weight.
        watcher: is told of gradients.
    """
    out: Tensor = _Rounded.apply(x, other, product, bits, weights, watcher)  # type: ignore[no-untyped-call]
    return out


class _StraightThrough(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bits: int, whole: bool) -> Tensor:
        if not x.numel():
            return x.view_as(x)
        if not whole:
            return nearest(rows_of(x), bits).view(x.shape)
        low, high = x.aminmax()
        return nearest_between(x, low.clamp(max=0), high.clamp(min=0), bits)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gradients[0], None, None


class _Rounded(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, other: Tensor, product: Product, bits: Bits, weights: bool, watcher: Watcher
    ) -> Tensor:
        ctx.save_for_backward(x, other)
        ctx.product, ctx.bits, ctx.weights, ctx.watcher = product, bits, weights, watcher
        return product(x, other)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, other = ctx.saved_tensors
        gradient, bits = gradients[0], ctx.bits
        rows = rows_of(gradient)
        rows = rows.float() if rows.dtype in (torch.bfloat16, torch.float16) else rows

        def copy(kind: Kind, count: int) -> Tensor:
            return quantized(rows, kind, count).view(gradient.shape).to(gradient.dtype)

        to_input = to_other = travelling = None
        if ctx.needs_input_grad[0] or (ctx.needs_input_grad[1] and not ctx.weights):
            travelling = copy(bits.gradient, bits.backward)
            if rows.numel():
                ctx.watcher.note(rows)
        if ctx.needs_input_grad[0]:
            to_input = ctx.product.to_input(travelling, x, other)
        if ctx.needs_input_grad[1]:
            ending = copy("ptq", WEIGHT_GRADIENT_BITS) if ctx.weights else travelling
            to_other = ctx.product.to_other(ending, x, other)
        return to_input, to_other, None, None, None, None
