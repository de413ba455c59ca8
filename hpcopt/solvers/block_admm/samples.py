"""A row of numbers for every sample that has come by: duals, or stored auxiliaries."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hpcopt.shapes.solver import Tree


class SampleTable:
    """Rows of one shape and dtype by sample index; a sample that was never written has zeros.

    Memory: one row for each sample seen here, and eight bytes for each index up to the largest.
    """

    def __init__(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
        """Keep the rows on a device; indices are in main memory."""
        self._rows = torch.zeros(0, *shape, dtype=dtype, device=device)
        self._place = torch.empty(0, dtype=torch.int64)  # row of each sample, -1 if it has none
        self._count = 0

    def read(self, indices: Tensor) -> Tensor:
        """Rows of samples, shape (n, *shape), a copy."""
        known = self.known(indices)
        rows = self._rows.new_zeros(len(indices), *self._rows.shape[1:])
        rows[known] = self._rows[self._place[indices[known]]]
        return rows

    def known(self, indices: Tensor) -> Tensor:
        """Which samples have been written, shape (n,), bool."""
        inside = indices < len(self._place)
        return inside & (self._place[indices.clamp(max=max(0, len(self._place) - 1))] >= 0 if self._count else inside)

    def write(self, indices: Tensor, rows: Tensor) -> None:
        """Set the rows of samples; all others keep theirs bit for bit."""
        if len(indices) == 0:
            return
        largest = int(indices.max())
        if largest >= len(self._place):
            grown = torch.full((max(largest + 1, 2 * len(self._place)),), -1, dtype=torch.int64)
            grown[: len(self._place)] = self._place
            self._place = grown
        new = indices[self._place[indices] < 0]
        self._place[new] = torch.arange(self._count, self._count + len(new))
        self._count += len(new)
        if self._count > len(self._rows):
            grown = self._rows.new_zeros(max(self._count, 2 * len(self._rows)), *self._rows.shape[1:])
            grown[: len(self._rows)] = self._rows
            self._rows = grown
        self._rows[self._place[indices]] = rows

    def state_dict(self) -> Tree:
        """Every sample's index and row."""
        indices = (self._place >= 0).nonzero()[:, 0]
        return {"indices": indices, "rows": self._rows[self._place[indices]]}

    def add_state_dict(self, state: Tree) -> None:
        """Write what another table held."""
        self.write(state["indices"], state["rows"].to(self._rows.device))
