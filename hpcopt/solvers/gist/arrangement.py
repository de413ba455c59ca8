"""Which hidden units make up which sub-network in a round: a function of (seed, round, parts), so nothing travels."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hpcopt.seeds import EVERY_RANK, derive


@dataclass(frozen=True)
class Arrangement:
    """Every hidden layer's units in disjoint chunks that cover it, their sizes differing by at most one.

    Attributes:
        widths: units of each hidden layer.
        parts: sub-networks, m.
        seed: the same on all ranks.
        round: whose arrangement it is.
    """

    widths: tuple[int, ...]
    parts: int
    seed: int
    round: int

    @cached_property
    def _chunks(self) -> list[list[np.ndarray]]:
        return [self._drawn(layer, width) for layer, width in enumerate(self.widths)]

    def _drawn(self, layer: int, width: int) -> list[np.ndarray]:
        draw = np.random.default_rng(derive(self.seed, self.round, EVERY_RANK, f"layer {layer}"))
        return [np.sort(chunk) for chunk in np.array_split(draw.permutation(width), self.parts)]

    def units(self, layer: int, part: int) -> np.ndarray:
        """The units of a sub-network, ascending: with one part all of them in their order."""
        return self._chunks[layer][part]

    def order(self, layer: int, part: int) -> np.ndarray:
        """All units: those of a sub-network first, then the others."""
        own = self.units(layer, part)
        return np.concatenate([own, np.setdiff1d(np.arange(self.widths[layer]), own)])


def values(units: np.ndarray, each: int) -> np.ndarray:
    """The places of units' values along an axis that has so many of each."""
    return (units[:, None] * each + np.arange(each)).ravel()


def members(parts: int, ranks: int) -> list[list[int]]:
    """The ranks that train each sub-network: with more parts than ranks each rank has several; with fewer, several
    ranks share the samples of one.

    >>> members(3, 2), members(2, 3)
    ([[0], [0], [1]], [[0, 1], [2]])
    """
    if parts >= ranks:
        return [[rank] for rank, own in enumerate(np.array_split(np.arange(parts), ranks)) for _ in own]
    return [group.tolist() for group in np.array_split(np.arange(ranks), parts)]


def largest(widths: Sequence[int], parts: int) -> list[int]:
    """Units of the largest chunk of each layer."""
    return [-(-width // parts) for width in widths]
