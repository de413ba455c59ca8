"""A replica spread over several ranks: each is a logical device, and all of them run the replica's step.

What a device computes is then there on all ranks of the replica, and so are, in the backward pass, the gradients of its
inputs: outside of the calls of devices, all ranks of a replica compute the same, bit for bit. Parameters live, and get
gradients, on their device alone.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from hpcopt.comm.world import World
from hpcopt.replicator.calls import Calls
from hpcopt.replicator.tree import Tree, flows, leaves, like, plan, unplan


class LogicalDevice:
    """One rank of a replica.

    Attributes:
        index: of the device in its replica.
        here: whether it is this rank.
    """

    def __init__(self, replica: World, calls: Calls, index: int) -> None:
        self._replica, self._calls, self.index = replica, calls, index
        self.here = replica.rank == index

    def build(self, make: Callable[[], nn.Module]) -> nn.Module:
        """``make()`` on the device; elsewhere a module without parameters, for ``__call__`` to be given."""
        return make() if self.here else nn.Module()

    def __call__(self, fn: Callable[..., Tree], *inputs: Tree) -> Tree:
        """Give ``fn(*inputs)``, computed on the device, on every rank of the replica. Collective: over the sync group.

        Cost: the comparison of the calls, a broadcast of the result's form, and one of each of its tensors within the
        replica; a backward pass costs a broadcast of the gradient of each input that needs one.

        Args:
            fn: a function or module; what it gives must have no named tuples.
            inputs: trees, the same on all ranks of the replica.

        Raises:
            PeerError: on all ranks: other ranks call something else.
        """
        if self._replica.size == 1:
            self._calls.agree(f"logical_device({self.index})")
            return fn(*inputs)
        given = leaves(inputs)
        copies = [x.detach().requires_grad_(flows(x)) for x in given]
        results: Tree = fn(*like(inputs, copies)) if self.here else None
        form = plan(results)
        self._calls.agree(f"logical_device({self.index})")
        form = bytes(self._replica.broadcast_integers(list(form.encode()), self.index)).decode()
        template = unplan(form)
        kept = leaves(results) if self.here else leaves(template)
        landed = [self._replica.broadcast(_copy(x), self.index) for x in kept]
        if not any(flows(x) for x in leaves(template)):
            return like(template, landed)
        following = torch.zeros((), requires_grad=True)  # results need a gradient also where inputs need none
        results = _Landed.apply(self, (copies, kept, landed), following, *given)  # type: ignore[no-untyped-call]
        return like(template, list(results))

    def _pull_back(self, copies: list[Tensor], kept: list[Tensor], gradients: Sequence[Tensor]) -> list[Tensor | None]:
        """The gradients of the inputs from those of the results."""
        self._calls.agree(f"backward of logical_device({self.index})")
        if self.here:
            ends = [(y, g) for y, g in zip(kept, gradients, strict=True) if y.requires_grad]
            torch.autograd.backward([y for y, _ in ends], [g for _, g in ends])
        return [self._input_gradient(x) if x.requires_grad else None for x in copies]

    def _input_gradient(self, x: Tensor) -> Tensor:
        gradient = torch.zeros_like(x) if x.grad is None else x.grad
        return self._replica.broadcast(_copy(gradient), self.index)


class _Landed(Function):
    @staticmethod
    def forward(
        ctx: Any, device: LogicalDevice, parts: tuple[list[Tensor], list[Tensor], list[Tensor]], *_: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.device, (ctx.copies, ctx.kept, landed) = device, parts
        ctx.mark_non_differentiable(*(y for y, x in zip(landed, ctx.kept, strict=True) if not x.requires_grad))
        return tuple(landed)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        return None, None, None, *ctx.device._pull_back(ctx.copies, ctx.kept, gradients)


def _copy(x: Tensor) -> Tensor:
    return x.detach().clone(memory_format=torch.contiguous_format)
