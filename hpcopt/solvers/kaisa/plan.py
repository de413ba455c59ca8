"""What one rank does at each event: which layers lie where in which buffer, and who sends which piece to whom.

Made once from a placement; a step only carries it out. Every event is one buffer and at most one message between two
ranks:

- factors: all layers' sums, by owner; each owner's segment is reduced to it;
- inverses: those of a column's layers, by owner; each owner sends its segment to its column;
- gradients: all layers' preconditioned gradients, by column; a rank of the column sends that segment along its row.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from hpcopt.solvers.kaisa.placement import Placement
from hpcopt.solvers.kaisa.products import aligned


@dataclass(frozen=True)
class Message:
    """Values [start, stop) of an event's buffer, to or from a rank."""

    start: int
    stop: int
    peer: int

    def of(self, flat: Tensor) -> tuple[Tensor, int]:
        """Its values in the buffer, a view, and the rank."""
        return flat[self.start : self.stop], self.peer


@dataclass(frozen=True)
class Sizes:
    """Values that a layer has in each event's buffer, those that its owner and its column keep beside it, and those
    needed for a while when it is inverted.
    """

    sums: int
    inverse: int
    gradient: int
    factors: int = 0
    moments: int = 0
    inverting: int = 0


class Buffer:
    """A flat buffer of layers' pieces, in groups.

    Attributes:
        pieces: where each layer lies.
        segments: where each group lies.
        numel: values in all.
    """

    def __init__(self, groups: Iterable[Sequence[int]], sizes: Sequence[int], *, align: bool = False) -> None:
        """``align``: each piece begins where ``aligned`` says."""
        self.pieces: dict[int, slice] = {}
        self.segments: list[slice] = []
        self.numel = 0
        for group in groups:
            start = self.numel = aligned(self.numel) if align else self.numel
            for i in group:
                begin = aligned(self.numel) if align else self.numel
                self.pieces[i] = slice(begin, begin + sizes[i])
                self.numel = begin + sizes[i]
            self.segments.append(slice(start, self.numel))

    @property
    def lengths(self) -> list[int]:
        """Values in each group."""
        return [s.stop - s.start for s in self.segments]


class Plan:
    """One rank's part.

    Attributes:
        owned: layers whose factors this rank keeps.
        worked: layers that it preconditions, those of its column.
        sums, inverses, gradients: the three buffers; inverses has a group for each rank of the column.
        own_inverses: where this rank's own lie in it.
        refreshed: owned layers that have any.
        moments: the buffer of the column's moments, which never travels.
        factors: values of the owned layers' factors.
        inverting: values that inverting each layer needs beside them.
        inverses_out, inverses_in, gradients_out, gradients_in: messages.
    """

    def __init__(self, placement: Placement, sizes: Sequence[Sizes], rank: int) -> None:
        grid = placement.grid
        self.placement, self.rank = placement, rank
        column = grid.column(rank)
        members = list(grid.members(column))
        self.owned = placement.owned(rank)
        self.worked = placement.of_column(column)
        self.sums = Buffer([placement.owned(r) for r in range(grid.size)], [s.sums for s in sizes])
        self.inverses = Buffer([placement.owned(r) for r in members], [s.inverse for s in sizes], align=True)
        columns = [placement.of_column(c) for c in range(grid.columns)]
        self.gradients = Buffer(columns, [s.gradient for s in sizes], align=True)
        self.moments = Buffer([self.worked], [s.moments for s in sizes], align=True)
        self.inverting = [s.inverting for s in sizes]
        self.refreshed = [i for i in self.owned if sizes[i].inverse]
        self.factors = sum(sizes[i].factors for i in self.owned)
        self._averaged = [i for i in self.owned if sizes[i].sums or sizes[i].factors]
        own = self.inverses.segments[members.index(rank)]
        others = [(segment, r) for segment, r in zip(self.inverses.segments, members, strict=True) if r != rank]
        self.own_inverses = own
        self.inverses_out = [Message(own.start, own.stop, r) for _, r in others]
        self.inverses_in = [Message(segment.start, segment.stop, r) for segment, r in others]
        mine = self.gradients.segments[column]
        self.gradients_out = [
            Message(mine.start, mine.stop, r)
            for r in range(grid.size)
            if grid.column(r) != column and grid.source(column, r) == rank
        ]
        self.gradients_in = [
            Message(segment.start, segment.stop, grid.source(c, rank))
            for c, segment in enumerate(self.gradients.segments)
            if c != column
        ]

    def lines(self, names: Sequence[str], item_bytes: int = 4) -> list[str]:
        """The plan for a person: compute, send and receive items in order."""

        def bytes_of(messages: Iterable[Message]) -> str:
            return ", ".join(f"{(m.stop - m.start) * item_bytes:,} B (rank {m.peer})" for m in messages) or "nothing"

        sent = [n * item_bytes for r, n in enumerate(self.sums.lengths) if r != self.rank]
        return [
            f"factors: send {sum(sent):,} B to {len(sent)} ranks; "
            f"keep those of {', '.join(names[i] for i in self._averaged) or 'no layer'}",
            f"inverses: compute {len(self.refreshed)} layers; send {bytes_of(self.inverses_out)}; "
            f"receive {bytes_of(self.inverses_in)}",
            f"gradients: precondition {len(self.worked)} layers; send {bytes_of(self.gradients_out)}; "
            f"receive {bytes_of(self.gradients_in)}",
        ]
