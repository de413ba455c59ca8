"""What one process at work has to add to a study: a file of its own, locked as long as the process lives."""

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from secrets import token_hex
from types import TracebackType
from typing import Self

from hpcopt.errors import DataError
from hpcopt.store.range_lock import lock
from hpcopt.study.claims import Claims
from hpcopt.study.table import Row


class Part:
    """The rows of one process, a line each, written as soon as they are known."""

    def __init__(self, folder: Path) -> None:
        """Make the file in this folder; nobody may look for parts there meanwhile."""
        path = folder / f"{socket.gethostname()}-{os.getpid()}-{token_hex(4)}.jsonl"
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._file = os.open(path, flags, 0o666)
        lock(self._file, 0)

    def write(self, row: Row) -> None:
        """Add a row.

        Raises:
            DataError: it cannot be written.
        """
        line = (json.dumps(row) + "\n").encode()
        try:
            if os.write(self._file, line) < len(line):
                raise OSError("the disk is full")
        except OSError as cause:
            raise DataError(
                f"cannot write a row of the study ({cause}): make room, and start the command again"
            ) from cause

    def close(self) -> None:
        """Write no more."""
        os.close(self._file)


class Hands:
    """What a process at work has: its claims, and its part of the rows."""

    def __init__(self, claims: Claims, part: Part) -> None:
        self.claims, self._part = claims, part

    def done(self, row: Row) -> None:
        """Keep the row of a point that was taken."""
        self._part.write(row)
        self.claims.done(row.number)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self.claims.give_back()
        self.claims.__exit__(None, None, None)
        self._part.close()


def rows_of(path: Path) -> Iterator[Row]:
    """Rows of a part; what a kill has cut short is none."""
    for line in path.read_bytes().splitlines(keepends=True):
        with contextlib.suppress(ValueError, TypeError):
            if line.endswith(b"\n"):
                yield Row(*json.loads(line))
