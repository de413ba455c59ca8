"""One step's forward and backward passes, virtual rank by virtual rank, each as if it were a rank of its own: its own
part of the batch, random numbers by its own seed, the buffers that the step began with.

Buffers such as running means then become ``b + mean over virtual ranks of (b_v - b)``. What virtual ranks tell, such as
losses, is summed with these changes, in a fixed tree and in double precision.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from hpcopt.comm import fixed_tree
from hpcopt.comm.virtual import VirtualRanks
from hpcopt.comm.world import World
from hpcopt.exchange import Exchange
from hpcopt.randomness import drawing_by
from hpcopt.shapes.batch import Batch, VirtualBatch

Backward = Callable[[Batch], Tensor]  # of a micro-batch: leaves gradients, and gives its summand of the loss


class OverVirtualRanks:
    """Of models and their exchanges.

    Attributes:
        after_each: called after each virtual rank's backward passes, with its number.
        totals: of what all virtual ranks have told in the last step, the same on all ranks.
    """

    def __init__(
        self, models: Sequence[nn.Module], exchanges: Sequence[Exchange], world: World, ranks: VirtualRanks
    ) -> None:
        self._models, self._exchanges, self._world, self._ranks = models, exchanges, world, ranks
        self.after_each: Callable[[int], None] = lambda virtual_rank: None
        self._told: Sequence[float] = ()
        self.totals: list[float] = []

    def turns(self, seeds: Sequence[int], backwards: int = 1) -> Iterator[int]:
        """Give the places 0, 1, ... of this rank's virtual ranks, each of whose gradients are left before the next one
        is asked for. In the end each model has the global gradients. Collective.

        Args:
            seeds: what each draws by.
            backwards: passes of the last one, whose gradients add up.
        """
        held, buffers, told = self._ranks.held, _Buffers(self._models), list[Tensor]()
        for exchange in self._exchanges:
            exchange.zero(backwards)
        for place, (virtual_rank, seed) in enumerate(zip(held, seeds, strict=True)):
            with drawing_by(seed):
                yield place
            self.after_each(virtual_rank)
            numbers, changes = torch.from_numpy(np.array(self._told, float)), buffers.changes()
            told.append(torch.cat([numbers, *changes]) if changes else numbers)
            if virtual_rank != held[-1]:
                for exchange in self._exchanges:
                    exchange.next_virtual_rank()
        total = fixed_tree.total(self._world, self._ranks, told, "what virtual ranks tell, and their buffers")
        for exchange in self._exchanges:  # whose buckets travel meanwhile
            exchange.finish()
        self.totals = total[: len(self._told)].tolist()
        buffers.move(total[len(self._told) :] / self._ranks.count)

    def tell(self, *numbers: float) -> None:
        """Add to the totals, as the virtual rank whose turn it is; as many numbers as all others."""
        self._told = numbers

    def gradient(self, batch: VirtualBatch, accumulate: int, backward: Backward) -> float:
        """Leave the global gradient; give the loss on rank 0, and zero elsewhere, so that no sum over ranks rounds it.
        Collective.

        Args:
            batch: this rank's.
            accumulate: micro-batches that a virtual rank's part is cut into.
            backward: what to do with each of them.
        """
        pieces = [part.split(accumulate) for part in batch.parts]
        for place in self.turns(batch.seeds, backwards=len(pieces[-1])):
            self.tell(sum((backward(piece).item() for piece in pieces[place]), 0.0))
        return self.totals[0] if self._world.rank == 0 else 0.0


class _Buffers:
    """Of models, at the start of a step; complex ones as pairs of numbers."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        self._models = models
        self._before = [b.clone() for b in self._now()]
        self._flat = [torch.cat([b.flatten() for b in alike]) for alike in _by_dtype(self._before)]

    def changes(self) -> list[Tensor]:
        """What a virtual rank has done to them, flat, float64; for the next one they are as they were."""
        if not self._before:
            return []
        now = self._now()
        with torch.no_grad():
            flat = [torch.cat([b.flatten() for b in alike]) for alike in _by_dtype(now)]
            torch._foreach_copy_(now, self._before)
            # Infinities that stay, as in a mask, have no difference.
            pairs = zip(flat, self._flat, strict=True)
            return [torch.where(b == was, 0.0, b.double() - was.double()) for b, was in pairs]

    @torch.no_grad()
    def move(self, changes: Tensor) -> None:
        """Change them by a mean of ``changes``; what nobody has changed keeps its bits."""
        parts = torch.split(changes, [was.numel() for was in self._flat])
        for alike, was, change in zip(_by_dtype(self._now()), self._flat, parts, strict=True):
            moved = torch.where(change == 0, was, (was.double() + change).to(was.dtype))
            for b, values in zip(alike, torch.split(moved, [b.numel() for b in alike]), strict=True):
                b.copy_(values.view(b.shape))

    def _now(self) -> list[Tensor]:
        """A forward pass may put another tensor in a buffer's place."""
        buffers = (b for model in self._models for b in model.buffers())
        return [torch.view_as_real(b) if b.is_complex() else b for b in buffers]


def _by_dtype(tensors: list[Tensor]) -> list[list[Tensor]]:
    found: dict[torch.dtype, list[Tensor]] = {}
    for x in tensors:
        found.setdefault(x.dtype, []).append(x)
    return list(found.values())
