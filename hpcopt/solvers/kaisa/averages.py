"""Running averages of the factors that a rank owns."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hpcopt.pinned import numbers
from hpcopt.solvers.kaisa import symmetric
from hpcopt.solvers.kaisa.layers.layer import FactorShape, Layer, memory_of
from hpcopt.solvers.kaisa.layers.matrix import Matrix


@dataclass
class Average:
    """A layer's two factors.

    Attributes:
        a, g: packed, shape (matrices, packed length).
        updates: batches averaged so far.
    """

    a: Tensor
    g: Tensor
    updates: int = 0

    @property
    def numel(self) -> int:
        """Values kept."""
        return self.a.numel() + self.g.numel()

    def add(self, a: Tensor, g: Tensor, decay: float) -> None:
        """Average in another batch: a plain mean while there are few, so that nothing remains of a start value; then
        one that forgets.
        """
        self.updates += 1
        new = 1 - min(1 - 1 / self.updates, decay)
        for average, batch in ((self.a, a), (self.g, g)):
            average.lerp_(batch.to(average.dtype), new)


class Averages:
    """By layer index.

    Attributes:
        rejected: sums that were not finite, and left out.
    """

    def __init__(self, layers: Sequence[Layer], owned: Sequence[int], dtype: torch.dtype) -> None:
        self.of: dict[int, Average] = {}
        self._layers = layers
        self.rejected = 0
        lengths = [layers[i].factors for i in owned]
        flat = torch.zeros(sum(lengths), dtype=dtype, device=memory_of(layers)[1])
        for i, own in zip(owned, torch.split(flat, lengths), strict=True):
            self.of[i] = Average(*split(layers[i], own))

    def add_sums(self, own: Tensor, decay: float) -> None:
        """Add summed statistics: this rank's segment of the sums' buffer, for each layer A, G and the number of rows.

        A layer that no rank used, or whose sums are not finite, stays as it is.
        """
        there = {i: average for i, average in self.of.items() if self._layers[i].sums}
        lengths = [average.numel + 1 for average in there.values()]
        pieces = torch.split(own, lengths)
        # a sum is the quicker look, but may overflow although all its summands are finite
        looks = numbers([x for piece in pieces for x in (piece[-1], piece.sum())])
        for (i, average), piece, rows, total in zip(there.items(), pieces, looks[::2], looks[1::2], strict=True):
            if rows == 0:
                continue
            if not (math.isfinite(total) or torch.isfinite(piece).all()):
                self.rejected += 1
                continue
            a, g = split(self._layers[i], piece[:-1])
            average.add(a.div_(rows), g, decay)

    def add_gradients(self, decay: float, factors: Callable[[int, Matrix, Tensor], tuple[Tensor, Tensor]]) -> None:
        """Add the factors of gradients, where they are made of those; ``factors`` makes them of an index, a layer and
        its gradient.
        """
        for i, average in self.of.items():
            layer = self._layers[i]
            if isinstance(layer, Matrix) and layer.factors and layer.weight.grad is not None:
                average.add(*factors(i, layer, layer.gradient().to(layer.dtype)), decay)


def split(layer: Layer, flat: Tensor) -> tuple[Tensor, Tensor]:
    """The packed factors A and G in a flat tensor, views of shape (matrices, packed length)."""
    a, g = torch.split(flat[: layer.factors], [layer.a.numel, layer.g.numel])
    return _matrices(a, layer.a), _matrices(g, layer.g)


def _matrices(flat: Tensor, shape: FactorShape) -> Tensor:
    return flat.view(shape.matrices, symmetric.packed_length(shape.size))
