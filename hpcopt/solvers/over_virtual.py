"""One step's forward and backward passes, virtual rank by virtual rank, each as if it were a rank of its own: its own
part of the batch, random numbers by its own seed, the buffers that the step began with.

Buffers such as running means then become ``b + mean over virtual ranks of (b_v - b)``, and the loss the sum over them,
both in a fixed tree, in double precision. Rank 0 tells the loss, the others zero, so that no sum over ranks rounds it.
"""

from collections.abc import Callable

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
    """Of one model and its exchange.

    Attributes:
        after_each: called after each virtual rank's backward passes, with its number.
    """

    def __init__(self, model: nn.Module, exchange: Exchange, world: World, ranks: VirtualRanks) -> None:
        self._model, self._exchange, self._world, self._ranks = model, exchange, world, ranks
        self.after_each: Callable[[int], None] = lambda virtual_rank: None

    def gradient(self, batch: VirtualBatch, accumulate: int, backward: Backward) -> float:
        """Leave the global gradient; give the loss on rank 0, and zero elsewhere. Collective.

        Args:
            batch: this rank's.
            accumulate: micro-batches that a virtual rank's part is cut into.
            backward: what to do with each of them.
        """
        exchange, held, buffers = self._exchange, self._ranks.held, _Buffers(self._model)
        pieces = [part.split(accumulate) for part in batch.parts]
        exchange.begin(backwards=sum(map(len, pieces)))
        told: list[Tensor] = []
        for virtual_rank, own, seed in zip(held, pieces, batch.seeds, strict=True):
            with drawing_by(seed):
                loss = sum((backward(piece).item() for piece in own), 0.0)
            self.after_each(virtual_rank)
            told.append(torch.cat([torch.tensor([loss], dtype=torch.float64), buffers.changes()]))
            if virtual_rank != held[-1]:
                exchange.next_virtual_rank()
        exchange.finish()
        total = fixed_tree.total(self._world, self._ranks, told, "losses and buffers of virtual ranks")
        buffers.move(total[1:] / self._ranks.count)
        return float(total[0]) if self._world.rank == 0 else 0.0


class _Buffers:
    """A model's, at the start of a step; complex ones as pairs of numbers."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._before = [b.clone() for b in self._now()]

    @torch.no_grad()
    def changes(self) -> Tensor:
        """What a virtual rank has done to them, flat, float64; for the next one they are as they were."""
        now = self._now()
        if not now:
            return torch.empty(0, dtype=torch.float64)
        pairs = zip(now, self._before, strict=True)
        # Infinities that stay, as in a mask, have no difference.
        changes = torch.cat([torch.where(b == was, 0.0, b.double() - was.double()).flatten() for b, was in pairs])
        torch._foreach_copy_(now, self._before)
        return changes

    @torch.no_grad()
    def move(self, changes: Tensor) -> None:
        """Change them by a mean of ``changes``; what nobody has changed keeps its bits."""
        parts = torch.split(changes, [was.numel() for was in self._before])
        for b, was, part in zip(self._now(), self._before, parts, strict=True):
            change = part.view(was.shape)
            b.copy_(torch.where(change == 0, was, (was.double() + change).to(was.dtype)))

    def _now(self) -> list[Tensor]:
        """A forward pass may put another tensor in a buffer's place."""
        return [torch.view_as_real(b) if b.is_complex() else b for b in self._model.buffers()]
