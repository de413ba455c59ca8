"""Which ranks were in a run at which step: what ``metrics.h5`` has recorded, so that another run does the same again.

Where steps go on over those present, that is also who was absent from which round, and whose own state was kept when a
group formed anew.

The bits of a run depend on how many ranks took each step, and on where that changed. Steps that were taken and lost
with a rank are in neither.
"""

import json
from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Self

import h5py

from hpcopt.errors import JobError
from hpcopt.solvers import absences
from hpcopt.store import hdf5
from hpcopt.store.metrics import read

PRESENT = "present"  # attribute of a start: ranks before it whose own state was kept


class Membership:
    """So many ranks from so many steps on.

    Attributes:
        starts: pairs of (steps done before, ranks), steps rising; one for each change.
        absent: ranks without a ballot, by round: the steps done after it.
    """

    def __init__(
        self,
        starts: Iterable[tuple[int, int]],
        present: Sequence[Sequence[int] | None] = (),
        absent: Mapping[int, Collection[int]] | None = None,
    ) -> None:
        """Take the starts of a run in their order; one that went back undoes those after it, and one of as many ranks
        as before, with all that they held, changes nothing.

        Args:
            starts, absent: see above.
            present: for each start, of the ranks before it those whose own state was kept; None: of all.
        """
        self.starts: list[tuple[int, int]] = []
        self._present: dict[int, Sequence[int]] = {}
        self.absent = absent or {}
        for (step, ranks), kept in zip_longest(starts, present):
            while self.starts and self.starts[-1][0] >= step:
                self._present.pop(self.starts.pop()[0], None)
            if kept is not None:
                self._present[step] = kept
            if not self.starts or self.starts[-1][1] != ranks or kept is not None:
                self.starts.append((step, ranks))

    @classmethod
    def of(cls, run: Path) -> Self:
        """What a run directory's, or a metrics file's, table of starts says.

        Raises:
            JobError: there is none.
            MetricsError: the file is damaged.
        """
        path = run / "metrics.h5" if run.is_dir() else run
        if not path.exists():
            raise JobError(f"[run] membership = {str(run)!r}: there is no such run, nor metrics file").everywhere()
        steps, ranks, attributes, rounds, absent = read(path, _recorded)
        missing: dict[int, set[int]] = {}
        for number, rank in zip(rounds, absent, strict=True):
            missing.setdefault(int(number), set()).add(int(rank))
        present = [json.loads(text).get(PRESENT) for text in attributes]
        return cls(zip(steps, ranks, strict=True), present, missing)

    @property
    def most(self) -> int:
        """Ranks at any time."""
        return max(ranks for _, ranks in self.starts)

    def ranks_after(self, step: int) -> int:
        """Ranks that take the step after so many."""
        index = bisect_right([start for start, _ in self.starts], step)
        return self.starts[max(0, index - 1)][1]

    def present_after(self, step: int) -> Sequence[int] | None:
        """Of the ranks that took the step before so many, those whose own state was kept; None: of all."""
        return self._present.get(step)

    def absent_in(self, number: int) -> Collection[int]:
        """Ranks whose ballots do not count in a round."""
        return self.absent.get(number, ())

    def changes_after(self, step: int) -> bool:
        """Whether others take the next step than took this one."""
        return any(start == step for start, _ in self.starts[1:])


def _recorded(file: h5py.File) -> tuple[list[int], list[int], list[str], list[int], list[int]]:
    """Of starts the steps, the ranks and the attributes; of absences the rounds and the ranks."""
    starts = file["starts"]
    texts = [bytes(text).decode() for text in hdf5.whole(starts["attributes"])]
    columns = ("step", absences.COLUMN)
    rounds, absent = (
        hdf5.whole(file[absences.TABLE][name]).tolist() if absences.TABLE in file else [] for name in columns
    )
    return hdf5.whole(starts["step"]).tolist(), hdf5.whole(starts["ranks"]).tolist(), texts, rounds, absent
