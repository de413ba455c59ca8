"""A batch of a Session's loop, in the parts of this rank's virtual ranks (``hpcopt.comm.virtual``): each computes and
draws as a rank of its own, and what they log is put together as their gradients are, in a fixed tree.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hpcopt.comm.virtual import VirtualRanks
from hpcopt.errors import JobError
from hpcopt.shapes.stats import Over, Scalar
from hpcopt.solvers.over_virtual import OverVirtualRanks
from hpcopt.trainer.told import Told, number


class Parts:
    """Of one loop.

    Attributes:
        step: the one whose batch was last gone through; -1 before.
        place: of the part under way, among this rank's.
    """

    def __init__(self, over: OverVirtualRanks, ranks: VirtualRanks, told: Told) -> None:
        """``told`` are the numbers of the loop's step under way."""
        self._over, self._ranks, self._told = over, ranks, told
        self.step, self.place = -1, 0

    def of(self, batch: Any, lengths: Sequence[int], step: int) -> Iterator[Any]:
        """Give parts of so many samples, whose gradients are summed in the end; see ``Session.parts``. Collective."""
        cut, before, over = cut_in(batch, lengths), self._told.take(), dict[str, Over]()
        for place in self._over.turns([self._ranks.seed_of(v, step, "model") for v in self._ranks.held]):
            self.place = place
            yield cut[place]
            numbers = dict(sorted(self._told.take().items()))
            kinds: dict[str, Over] = {n: x.over if isinstance(x, Scalar) else "mean" for n, x in numbers.items()}
            over = over if place else kinds
            if kinds != over or not {"mean", "sum"}.issuperset(kinds.values()):
                raise JobError(
                    f"a part of the batch logs {kinds}, the first one {over}: log the same means and sums in each part"
                ).everywhere()
            self._over.tell(*(number(name, x.value if isinstance(x, Scalar) else x) for name, x in numbers.items()))
        self._told.add(before)
        for (name, kind), total in zip(over.items(), self._over.totals, strict=True):
            x = total if kind == "sum" else total / self._ranks.count
            # A loss is summed over the ranks, without rounding if one of them has it all.
            self._told.add({name: Scalar(0.0 if self._ranks.rank else x, "sum") if name == "loss" else x})
        self.step, self.place = step, 0


def cut_in(batch: Any, lengths: Sequence[int]) -> list[Any]:
    """Tensors, in lists, tuples and dictionaries, cut along their first dimension. Each part has memory of its own, for
    bits of products depend on where it begins in a cache line.

    Raises:
        JobError: on all ranks: there is something else in it, or other numbers of samples.

    >>> import torch
    >>> cut_in({"x": torch.arange(3)}, [2, 1])
    [{'x': tensor([0, 1])}, {'x': tensor([2])}]
    """
    match batch:
        case Tensor():
            if batch.shape[:1] != (sum(lengths),):
                raise JobError(
                    f"parts(batch): a tensor of shape {tuple(batch.shape)}, where this rank has {sum(lengths)} samples "
                    "of the step: a tensor's first dimension is that of session.sampler's batches"
                ).everywhere()
            return [part.clone() for part in torch.split(batch, list(lengths))]
        case Mapping():
            each = [cut_in(x, lengths) for x in batch.values()]
            return [dict(zip(batch, part, strict=True)) for part in zip(*each, strict=True)]
        case list() | tuple():
            return [type(batch)(part) for part in zip(*(cut_in(x, lengths) for x in batch), strict=True)]
    raise JobError(
        f"parts(batch) cuts tensors, in lists, tuples and dictionaries, and no {type(batch).__name__}: let the loader "
        "give the rest after it"
    ).everywhere()
