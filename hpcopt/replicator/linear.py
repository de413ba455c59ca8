"""Collectives on flat tensors that autograd follows.

The derivative is that of the sum of all ranks' losses, so that the mean of their gradients is the gradient of their
mean loss. A collective that is linear in what the ranks bring has its transpose for derivative:

=================  ===============================  ====================
collective         y                                transpose
=================  ===============================  ====================
``Sum``            sum over ranks of x, everywhere  ``Sum``
``Broadcast(r)``   x of rank r, everywhere          ``Reduce(r)``
``Reduce(r)``      sum at rank r, zeros elsewhere   ``Broadcast(r)``
``Gather``         x of every rank, everywhere      ``Scatter``
``Scatter``        sum of rows r at rank r          ``Gather``
=================  ===============================  ====================

A backward pass runs the transposes, in the reverse order of the calls: they too are compared between ranks.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import Function

from hpcopt.comm import ragged
from hpcopt.comm.world import World
from hpcopt.replicator.calls import Calls
from hpcopt.replicator.tree import describe, flows


@dataclass(frozen=True)
class Linear:
    """A collective over the ranks of a world, out of place."""

    world: World

    def __call__(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    @property
    def transpose(self) -> "Linear":
        raise NotImplementedError


@dataclass(frozen=True)
class Sum(Linear):
    """(n,) -> (n,). Cost: an all-reduce."""

    def __call__(self, x: Tensor) -> Tensor:
        return self.world.all_reduce(_copy(x))

    @property
    def transpose(self) -> Linear:
        return self


@dataclass(frozen=True)
class Broadcast(Linear):
    """(n,) -> (n,), of rank ``root``."""

    root: int

    def __call__(self, x: Tensor) -> Tensor:
        return self.world.broadcast(_copy(x), self.root)

    @property
    def transpose(self) -> Linear:
        return Reduce(self.world, self.root)


@dataclass(frozen=True)
class Reduce(Linear):
    """(n,) -> (n,), at rank ``root``. Cost: ``(P - 1) (alpha + n / B)`` there."""

    root: int

    def __call__(self, x: Tensor) -> Tensor:
        lengths = [x.numel() if rank == self.root else 0 for rank in range(self.world.size)]
        total = ragged.reduce_to_owners(self.world.transport, _copy(x), lengths)
        return total if self.world.rank == self.root else torch.zeros_like(x)

    @property
    def transpose(self) -> Linear:
        return Broadcast(self.world, self.root)


@dataclass(frozen=True)
class Gather(Linear):
    """(n,) -> (P, n)."""

    def __call__(self, x: Tensor) -> Tensor:
        return self.world.all_gather(x.detach())

    @property
    def transpose(self) -> Linear:
        return Scatter(self.world)


@dataclass(frozen=True)
class Scatter(Linear):
    """(P, n) -> (n,). Cost: half of an all-reduce."""

    def __call__(self, x: Tensor) -> Tensor:
        lengths = [x.shape[1]] * self.world.size
        return ragged.reduce_to_owners(self.world.transport, _copy(x).view(-1), lengths).clone()

    @property
    def transpose(self) -> Linear:
        return Gather(self.world)


def apply(collective: Linear, calls: Calls, x: Tensor) -> Tensor:
    """Run a collective that the ranks have agreed on."""
    y: Tensor = _Apply.apply(collective, calls, x)  # type: ignore[no-untyped-call]
    return y


def extreme(world: World, calls: Calls, x: Tensor, op: Literal["max", "min"]) -> Tensor:
    """The largest or smallest over ranks of each value of x, (n,) -> (n,). Where several ranks have it, each gets an
    equal part of the gradient. Cost: an all-reduce, and one more if a gradient flows.
    """
    y: Tensor = _Extreme.apply(world, calls, x, op, flows(x))  # type: ignore[no-untyped-call]
    return y


class _Apply(Function):
    @staticmethod
    def forward(ctx: Any, collective: Linear, calls: Calls, x: Tensor) -> Tensor:
        ctx.collective, ctx.calls = collective, calls
        return collective(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, Tensor]:
        (gradient,) = gradients
        transpose, forward = ctx.collective.transpose, type(ctx.collective).__name__.lower()
        ctx.calls.agree(f"backward of {forward} of {describe(gradient)}")
        return None, None, apply(transpose, ctx.calls, gradient)


class _Extreme(Function):
    @staticmethod
    def forward(ctx: Any, world: World, calls: Calls, x: Tensor, op: Literal["max", "min"], flowing: bool) -> Tensor:
        y = world.all_reduce(_copy(x), op)
        if flowing:
            has = (x == y).to(x.dtype)
            ctx.save_for_backward(has / world.all_reduce(has.clone()))
        ctx.world, ctx.calls, ctx.op = world, calls, op
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, Tensor, None, None]:
        (part,), (gradient,) = ctx.saved_tensors, gradients
        ctx.calls.agree(f"backward of {ctx.op} of {describe(gradient)}")
        return None, None, part * apply(Sum(ctx.world), ctx.calls, gradient), None, None


def _copy(x: Tensor) -> Tensor:
    """To be written over."""
    return x.detach().clone(memory_format=torch.contiguous_format)
