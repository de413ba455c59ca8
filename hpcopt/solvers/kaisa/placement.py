"""Who keeps which layer's factors, who has its inverses, who sends its preconditioned gradient: KAISA's grid.

Ranks fill a grid row by row (Pauloski et al. 2021, arXiv:2107.01739, section 3). Each layer belongs to one column. One
rank of the column owns it: factors are summed to it, and it inverts them. All ranks of the column get the inverses and
precondition the layer's gradient. Everyone else gets the preconditioned gradient from the rank of that column in the
own row. One column is communication-optimal, as many columns as ranks memory-optimal.

Pure functions of sizes: nothing here communicates.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Grid:
    """``size`` ranks in rows of ``columns``; the last row may be short."""

    size: int
    columns: int

    @classmethod
    def of_fraction(cls, size: int, fraction: float) -> "Grid":
        """The grid in which about ``fraction`` of the ranks have each layer's inverses."""
        return cls(size, max(1, min(size, round(1 / fraction))))

    @property
    def fraction(self) -> float:
        """Ranks of the longest column, of all."""
        return len(self.members(0)) / self.size

    def column(self, rank: int) -> int:
        """The column that a rank stands in."""
        return rank % self.columns

    def members(self, column: int) -> range:
        """The ranks of a column."""
        return range(column, self.size, self.columns)

    def source(self, column: int, rank: int) -> int:
        """Which rank of a column sends its gradients to ``rank``: the one of the same row, or where a short last row
        has none, of the row above.
        """
        same_row = rank // self.columns * self.columns + column
        return same_row if same_row < self.size else same_row - self.columns


@dataclass(frozen=True)
class Cost:
    """What a layer costs a step, in seconds.

    Attributes:
        invert_s: of its owner.
        precondition_s: of every rank in its column.
        send_s: of its owner, to send the inverses to one rank.
    """

    invert_s: float
    precondition_s: float
    send_s: float


@dataclass(frozen=True)
class Placement:
    """The grid, and the rank that owns each layer."""

    grid: Grid
    owners: tuple[int, ...]

    def owned(self, rank: int) -> list[int]:
        """Indices of the layers that a rank owns."""
        return [i for i, owner in enumerate(self.owners) if owner == rank]

    def of_column(self, column: int) -> list[int]:
        """Indices of a column's layers, grouped by owner in rank order."""
        return [i for rank in self.grid.members(column) for i in self.owned(rank)]

    def text(self) -> str:
        """The grid: for each rank how many layers it owns, and how many it preconditions."""
        rows = []
        for first in range(0, self.grid.size, self.grid.columns):
            ranks = range(first, min(first + self.grid.columns, self.grid.size))
            cells = [
                f"rank {r}: owns {len(self.owned(r))} of {len(self.of_column(self.grid.column(r)))}".ljust(28)
                for r in ranks
            ]
            rows.append("| " + " | ".join(cells) + " |")
        return "\n".join(rows)


def place(costs: Sequence[Cost], grid: Grid) -> Placement:
    """Give each layer an owner, the longest first, each to where the busiest rank of its column is then least busy."""
    busy_s = [0.0] * grid.size
    owners = [0] * len(costs)

    def cost_at(i: int, owner: int) -> dict[int, float]:
        members = grid.members(grid.column(owner))
        own_s = costs[i].invert_s + (len(members) - 1) * costs[i].send_s
        return {rank: busy_s[rank] + costs[i].precondition_s + own_s * (rank == owner) for rank in members}

    def order(i: int) -> tuple[float, int]:
        return -(costs[i].invert_s + costs[i].precondition_s), i

    for i in sorted(range(len(costs)), key=order):
        best = min(range(grid.size), key=lambda rank: (max(cost_at(i, rank).values()), cost_at(i, rank)[rank], rank))
        for rank, load_s in cost_at(i, best).items():
            busy_s[rank] = load_s
        owners[i] = best
    return Placement(grid, tuple(owners))
