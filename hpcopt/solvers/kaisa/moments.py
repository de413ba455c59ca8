"""What methods carry from step to step: for each layer of this rank's column, alike on all of its ranks."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hpcopt.solvers.kaisa.layers.layer import Layer, memory_of
from hpcopt.solvers.kaisa.method import PerLayer
from hpcopt.solvers.kaisa.plan import Plan
from hpcopt.solvers.kaisa.refresh import Inverses


class Moments:
    """In one flat buffer, in the layers' own precision; zeros at first."""

    def __init__(self, method: PerLayer, layers: Sequence[Layer], plan: Plan, inverses: Inverses) -> None:
        self._method, self._layers, self._plan, self._inverses = method, layers, plan, inverses
        dtype, device = memory_of(layers)
        self._flat = torch.zeros(plan.moments.numel, dtype=dtype, device=device)

    def of(self, i: int) -> Tensor:
        """A layer's, a view."""
        return self._flat[self._plan.moments.pieces[i]]

    def leave(self) -> None:
        """Before inverses are replaced."""
        for i in self._plan.worked:
            layer = self._layers[i]
            self._method.of(layer).leave(layer, self._inverses.of(i), self.of(i))

    def enter(self) -> None:
        """Once they are."""
        for i in self._plan.worked:
            layer = self._layers[i]
            self._method.of(layer).enter(layer, self._inverses.of(i), self.of(i))
