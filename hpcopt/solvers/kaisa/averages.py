"""Running averages of the factors that a rank owns."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hpcopt.solvers.kaisa.layers.layer import Layer


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

    def __init__(self, layers: Sequence[Layer], owned: Sequence[int], dtype: torch.dtype | None) -> None:
        self.of: dict[int, Average] = {}
        self._layers = layers
        self.rejected = 0
        numel = sum(layers[i].a.numel + layers[i].g.numel for i in owned)
        if owned:
            flat = torch.zeros(numel, dtype=dtype or layers[owned[0]].dtype)
            for i in owned:
                n = layers[i].a.numel + layers[i].g.numel
                a, g = split(layers[i], flat[:n])
                self.of[i] = Average(a, g)
                flat = flat[n:]

    def add_sums(self, sums: Mapping[int, Tensor], decay: float) -> None:
        """Add every layer's summed statistics: its piece of the sums' buffer, the number of rows last.

        A layer that no rank used, or whose sums are not finite, stays as it is.
        """
        for i, piece in sums.items():
            rows = float(piece[-1])
            if rows == 0:
                continue
            if not (
                math.isfinite(piece.sum()) or torch.isfinite(piece).all()
            ):  # the first is quick; finite sums may overflow
                self.rejected += 1
                continue
            a, g = split(self._layers[i], piece[:-1])
            self.of[i].add(a.div_(rows), g, decay)


def split(layer: Layer, flat: Tensor) -> tuple[Tensor, Tensor]:
    """The packed factors A and G in a flat tensor, views of shape (matrices, packed length)."""
    n = layer.a.numel
    a = flat[:n].view(layer.a.matrices, -1) if n else flat[:0].view(0, 1)
    return a, flat[n : n + layer.g.numel].view(layer.g.matrices, -1)
