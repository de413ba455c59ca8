"""Which ranks were in a run at which step: what ``metrics.h5`` has recorded, so that another run does the same again.

The bits of a run depend on how many ranks took each step, and on where that changed. Steps that were taken and lost
with a rank are in neither.
"""

from bisect import bisect_right
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from hpcopt.errors import JobError
from hpcopt.store import hdf5
from hpcopt.store.metrics import read


class Membership:
    """So many ranks from so many steps on.

    Attributes:
        starts: pairs of (steps done before, ranks), steps rising; one for each change.
    """

    def __init__(self, starts: Iterable[tuple[int, int]]) -> None:
        """Take the starts of a run in their order; one that went back undoes those after it, and one of as many ranks
        as before changes nothing.
        """
        self.starts: list[tuple[int, int]] = []
        for step, ranks in starts:
            while self.starts and self.starts[-1][0] >= step:
                self.starts.pop()
            if not self.starts or self.starts[-1][1] != ranks:
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
        table = read(path, lambda file: [hdf5.whole(file["starts"][name]) for name in ("step", "ranks")])
        return cls(zip(*(column.tolist() for column in table), strict=True))

    @property
    def most(self) -> int:
        """Ranks at any time."""
        return max(ranks for _, ranks in self.starts)

    def ranks_after(self, step: int) -> int:
        """Ranks that take the step after so many."""
        index = bisect_right([start for start, _ in self.starts], step)
        return self.starts[max(0, index - 1)][1]

    def changes_after(self, step: int) -> bool:
        """Whether others take the next step than took this one."""
        return any(start == step for start, _ in self.starts[1:])
