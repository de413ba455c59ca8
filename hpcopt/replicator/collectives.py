"""Collectives over trees: what goes alike, of one dtype and device, travels as one flat tensor."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from hpcopt.comm.world import World
from hpcopt.errors import JobError, UnsupportedError
from hpcopt.replicator import linear
from hpcopt.replicator.calls import Calls
from hpcopt.replicator.tree import Tree, describe, flows, leaves, like

Op = Literal["sum", "min", "max", "mean"]
Flat = Callable[[Tensor], Tensor]  # (n,) -> (..., n)


class Collectives:
    """Between the replicas of a sync group, on trees of tensors and numbers. Every result is a tree of tensors.

    Each is Collective over the replicas, and differentiable (``hpcopt.replicator.linear``). Cost: one all-gather of 16
    bytes a rank, in which the calls are compared, and one collective for each dtype and device in the tree, and again
    for its leaves with a gradient; a backward pass costs as much again.

    All raise:
        PeerError: on all ranks: they call different things, or with other trees, shapes or dtypes; the message says who
            called what, and where.
        UnsupportedError: a leaf is no tensor or number; booleans have no sum.
    """

    def __init__(self, replicas: World, calls: Calls) -> None:
        """Run over the replicas, whose ``calls`` may be of more ranks."""
        self._replicas, self._calls = replicas, calls

    def all_sum(self, tree: Tree) -> Tree:
        """The sum over the replicas, bit-equal on all of them."""
        return self._over(linear.Sum(self._replicas), self._summable(tree), "all_sum")

    def all_mean(self, tree: Tree) -> Tree:
        """The mean over the replicas, bit-equal on all of them."""
        total = self._over(linear.Sum(self._replicas), self._summable(tree), "all_mean")
        return like(tree, [x / self._replicas.size for x in leaves(total)])

    def all_min(self, tree: Tree) -> Tree:
        """The smallest over the replicas of each value; NaN where one has it."""
        return self._extreme(tree, "min")

    def all_max(self, tree: Tree) -> Tree:
        """The largest over the replicas of each value; NaN where one has it."""
        return self._extreme(tree, "max")

    def all_gather(self, tree: Tree) -> Tree:
        """Every replica's: a leaf of shape s becomes one of shape (replicas, \\*s)."""
        return self._over(linear.Gather(self._replicas), tree, "all_gather")

    def broadcast(self, tree: Tree, source: int = 0) -> Tree:
        """Replica ``source``'s; the others' are placeholders of its form."""
        return self._over(linear.Broadcast(self._replicas, self._existing(source)), tree, f"broadcast from {source}")

    def reduce(self, tree: Tree, to: int = 0) -> Tree:
        """The sum over the replicas on replica ``to``, and zeros on the others."""
        return self._over(linear.Reduce(self._replicas, self._existing(to)), self._summable(tree), f"reduce to {to}")

    def _over(self, collective: linear.Linear, tree: Tree, name: str) -> Tree:
        return self._packed(lambda x: linear.apply(collective, self._calls, x), tree, name)

    def _extreme(self, tree: Tree, op: Literal["min", "max"]) -> Tree:
        return self._packed(lambda x: linear.extreme(self._replicas, self._calls, x, op), tree, f"all_{op}")

    def _packed(self, collective: Flat, tree: Tree, name: str) -> Tree:
        """Run a flat collective on the leaves of each kind, laid end to end, once all ranks are about to."""
        values = leaves(tree)
        self._calls.agree(f"{name} of {describe(tree)}")
        kinds: dict[object, list[int]] = {}
        for index, x in enumerate(values):
            kinds.setdefault((x.dtype, x.device.type, flows(x)), []).append(index)
        for members in kinds.values():
            flat = collective(torch.cat([values[i].reshape(-1) for i in members]))
            parts = torch.split(flat, [values[i].numel() for i in members], dim=-1)
            for i, part in zip(members, parts, strict=True):
                values[i] = part.reshape((*flat.shape[:-1], *values[i].shape))
        return like(tree, values)

    def _summable(self, tree: Tree) -> Tree:
        if any(x.dtype == torch.bool for x in leaves(tree)):
            raise UnsupportedError("booleans have no sum: give x.long(), or ask for all_max or all_min")
        return tree

    def _existing(self, index: int) -> int:
        if not 0 <= index < self._replicas.size:
            raise JobError(f"there is no replica {index}: they are 0 to {self._replicas.size - 1}")
        return index
