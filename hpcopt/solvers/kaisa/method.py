"""What a method says of a layer: which state it keeps, what a refresh makes of the factors, and what it makes of the
gradient. All else, who keeps what, what travels when, checkpoints, memory, is the same for all methods.

There are three kinds of state. *Factors* are averages that the layer's owner keeps. What is *kept* the owner makes of
them at a refresh and sends to its column. *Moments* move at every step, alike on all ranks of the column; they never
travel, for they depend on nothing but the gradients, which are the same everywhere.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol

from torch import Tensor

from hpcopt.solvers.kaisa.factors import Failures, Work
from hpcopt.solvers.kaisa.layers.layer import Layer
from hpcopt.solvers.kaisa.layers.matrix import Source


class Method(Protocol):
    """How a layer's gradient becomes what replaces it.

    Attributes:
        source: what factors are made of: what goes through a layer, or into it, its gradient, or none are.
        natural: what it gives is a natural gradient: it is clipped by the divergence that it makes.
        whole: what it gives is a whole step, to be multiplied by a learning rate alone.
        scratch: flat memory for one kept matrix unpacked, of the kept values' dtype; set while a step preconditions.
    """

    source: Source
    natural: ClassVar[bool]
    whole: ClassVar[bool]
    scratch: Tensor | None

    def numel(self, layer: Layer) -> int:
        """Values kept of a layer."""

    def carried(self, layer: Layer) -> int:
        """Values that move at every step."""

    def working(self, layer: Layer) -> int:
        """Values that a refresh needs beside all these for a while."""

    def invert(self, work: Sequence[Work], failures: Failures) -> None:
        """Fill every ``out``, shape (numel(layer),), which has what was kept before."""

    def apply(self, layer: Layer, kept: Tensor, w: Tensor, damping: float, moments: Tensor) -> Tensor:
        """What replaces W, both of shape (batch, outputs, inputs). A method may have damped when it inverted."""

    def leave(self, layer: Layer, kept: Tensor, moments: Tensor) -> None:
        """Make moments independent of what is kept, which is about to be replaced."""

    def enter(self, layer: Layer, kept: Tensor, moments: Tensor) -> None:
        """Undo ``leave`` for what is kept now."""

    def refresh_flops(self, layer: Layer) -> float:
        """Operations of the matrix products that take as long as a refresh; rough."""

    def step_flops(self, layer: Layer) -> float:
        """Operations of a step."""


class PerLayer:
    """Each layer's own method, by its name."""

    def __init__(self, methods: Mapping[str, Method]) -> None:
        self._methods = methods

    def of(self, layer: Layer) -> Method:
        """A layer's method."""
        return self._methods[layer.method]

    def named(self, name: str) -> Method | None:
        """The method of a name, if it is any layer's."""
        return self._methods.get(name)

    def invert(self, work: Sequence[Work], failures: Failures) -> None:
        """Refresh layers, those of one method together."""
        for name, method in self._methods.items():
            own = [w for w in work if w.layer.method == name]
            if own:
                method.invert(own, failures)

    def lend(self, scratch: Tensor | None) -> None:
        """Give all methods memory to work in, or take it back."""
        for method in self._methods.values():
            method.scratch = scratch
