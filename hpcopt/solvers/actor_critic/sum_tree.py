"""Numbers in a binary tree of their sums: one is drawn in proportion to its size, or changed, in log n steps."""

import numpy as np


class SumTree:
    """Of n places, at first 0. Sums are those of the two below, so that no rounding gathers over time."""

    def __init__(self, places: int) -> None:
        self._leaves = 1 << max(0, places - 1).bit_length()
        self._sums = np.zeros(2 * self._leaves)  # the root at 1, the two below k at 2 k and 2 k + 1

    @property
    def total(self) -> float:
        """The sum of all."""
        return float(self._sums[1])

    def __getitem__(self, places: np.ndarray) -> np.ndarray:
        found: np.ndarray = self._sums[self._leaves + places]
        return found

    def __setitem__(self, places: np.ndarray, values: np.ndarray | float) -> None:
        """Set numbers; of a place that comes more than once, the last."""
        nodes = self._leaves + places
        self._sums[nodes] = values
        while (nodes := np.unique(nodes >> 1))[0]:
            self._sums[nodes] = self._sums[2 * nodes] + self._sums[2 * nodes + 1]

    def find(self, masses: np.ndarray) -> np.ndarray:
        """The places at which the running sum of all numbers comes to exceed ``masses``, each in [0, total)."""
        nodes, left = np.ones(len(masses), np.int64), masses.copy()
        while nodes[0] < self._leaves:
            nodes *= 2
            below = self._sums[nodes]
            right = (left >= below) & (self._sums[nodes + 1] > 0)
            left -= np.where(right, below, 0)
            nodes += right
        return nodes - self._leaves
