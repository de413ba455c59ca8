"""Who does which point: a file with a byte a point, which many processes change, each under a lock of its own.

A process takes a point by a lock on the point's byte, and holds it until the point's row is on disk. So a point is done
once, by whoever comes first, and no process needs to know of the others: ranks, tasks of a job array and commands
typed by hand deal the points among each other. The system takes the lock of a process back that was killed.
"""

import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from hpcopt.store.range_lock import lock, unlock

FREE, TAKEN, ROW = 0, 1, 2  # a point's byte: nobody has begun it; somebody has; its row is on disk


class Claims:
    """One process's hands on the file.

    Attributes:
        taken: points that this process has, and has no row for yet.
    """

    def __init__(self, path: Path) -> None:
        """Open the file; it is made if it is missing."""
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        self.taken: list[int] = []

    def states(self) -> np.ndarray:
        """The byte of every point, (N,) uint8, as of about now: FREE, TAKEN or ROW."""
        return np.frombuffer(os.pread(self._file, os.fstat(self._file).st_size, 0), np.uint8)

    def settle(self, count: int, rows: Callable[[], np.ndarray]) -> None:
        """Make the file say what is known, while others may be at work: what has a row is ROW, and what nobody holds
        and has none is FREE. For one process at a time.

        Args:
            count: of the points.
            rows: gives which have rows on disk, (count,) bool, as of when it is called.
        """
        os.ftruncate(self._file, max(count, os.fstat(self._file).st_size))
        before = self.states()[:count]
        orphans = [number for number in np.flatnonzero(before == TAKEN).tolist() if lock(self._file, number)]
        known = rows()  # those that the orphans' owners wrote, too: they write no more
        for number in orphans:
            self._set(number, ROW if known[number] else FREE)
            unlock(self._file, number)
        for number in np.flatnonzero((before == ROW) & ~known).tolist():  # somebody has removed the row
            self._set(number, FREE)
        for number in np.flatnonzero((before == FREE) & known).tolist():
            self._set(number, ROW)

    def take(self, most: int, count: int) -> list[int]:
        """Take the first of ``count`` points that nobody has, up to ``most``; none if there are none."""
        free = np.flatnonzero(self.states()[:count] == FREE)
        while len(free):
            first = int(free[0])
            run = int(np.argmax(np.append(np.diff(free), 2) != 1)) + 1  # of points one behind the other
            length = min(run, most)
            if lock(self._file, first, length):
                now = os.pread(self._file, length, first)  # another may have had them meanwhile
                self.taken = [first + place for place, state in enumerate(now) if state == FREE]
                for place, state in enumerate(now):
                    if state != FREE:
                        unlock(self._file, first + place)
                for number in self.taken:
                    self._set(number, TAKEN)
                if self.taken:
                    return list(self.taken)
            free = free[length:]
        return []

    def done(self, number: int) -> None:
        """The row of a point that was taken is on disk."""
        self._give(number, ROW)

    def give_back(self) -> None:
        """Leave the points that were taken, and have no row, to others."""
        for number in list(self.taken):
            self._give(number, FREE)

    def _give(self, number: int, state: int) -> None:
        self._set(number, state)
        unlock(self._file, number)
        self.taken.remove(number)

    def _set(self, number: int, state: int) -> None:
        os.pwrite(self._file, bytes([state]), number)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        os.close(self._file)
