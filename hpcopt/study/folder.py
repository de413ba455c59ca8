"""A study on disk: its table, and beside it what processes at work have to add.

``table.h5`` has all points. A process at work appends a line for each point that it has done to a file of its own in
``parts/``, under a lock that it holds as long as it lives; whoever comes next and finds a part without a process puts
its rows into the table. So a kill at any moment costs the points that were at work, and no row.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpcopt.errors import DataError, JobError
from hpcopt.store import strict_json
from hpcopt.store.files import remove, unused
from hpcopt.store.metrics import software
from hpcopt.store.range_lock import lock
from hpcopt.study.claims import FREE, Claims
from hpcopt.study.grid import Point, label
from hpcopt.study.parts import Hands, Part, rows_of
from hpcopt.study.table import FAILED, LEFT, Table, empty, key_of, read_table, write_table

if TYPE_CHECKING:
    from hpcopt.study.study_file import Study  # brings torch, which readers can do without

TABLE, CLAIMS, LOCK, PARTS, RUNS = "table.h5", "claims", "lock", "parts", "runs"


class Folder:
    """The folder of a study.

    Attributes:
        path: of it.
        table: path of the table.
        runs: run directories of points that are jobs.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()  # a point may change the working directory
        self.table, self.runs = self.path / TABLE, self.path / RUNS
        self._parts = self.path / PARTS

    def begin(self, study: "Study", *, fresh: bool = False, again: bool = False) -> Table:
        """Make the folder, or find it again and give it the points that it has not.

        Args:
            study: what is asked.
            fresh: move a folder that is there aside.
            again: let points that have failed be left.

        Raises:
            JobError: it is another study's folder.
            DataError: it cannot be written, or its table is damaged.
        """
        with self._writing():
            if fresh and self.path.exists():
                stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
                self.path.rename(unused(self.path.parent, f"{self.path.name}.before-{stamp}"))
            self._parts.mkdir(parents=True, exist_ok=True)
            with self._alone():
                table, gone, more = self._gathered()
                wanted = {key_of(point): point for point in study.points}
                if len(table):
                    there = {key_of(point): point for point in table.points}
                    self._require_same(table, study, gone=[there[key] for key in there if key not in wanted])
                    wanted = {key: wanted[key] for key in wanted if key not in there}
                else:
                    table.attributes = _attributes(study)
                table.extend(list(wanted.values()))
                if again:
                    for number in np.flatnonzero(table.status == FAILED).tolist():
                        remove(self.run_directory(number))
                    table.forget(FAILED)
                self._publish(table, gone, changed=bool(more or wanted or again))
        return table

    def join(self) -> Hands:
        """Come to work on the points.

        Raises:
            DataError: the folder cannot be written.
        """
        with self._writing(), self._alone():
            return Hands(Claims(self.path / CLAIMS), Part(self._parts))

    def settle(self) -> int:
        """Put the rows of processes that are gone into the table, and free the points that they had; give how many
        points nobody has then.

        Raises:
            DataError: the folder cannot be written, or its table is damaged.
        """
        with self._writing(), self._alone():
            table, gone, more = self._gathered()
            return self._publish(table, gone, changed=more > 0)

    def read(self) -> Table:
        """The table with the rows of processes at work; changes nothing on disk.

        Raises:
            DataError: it is missing or damaged.
        """
        while True:
            before = self._version()
            seen = self._seen(read_table(self.table))
            if before == self._version():  # another, if a part has been put into the table meanwhile
                return seen

    def _version(self) -> tuple[int, int] | None:
        """Of the table's file; None, where there is none."""
        with contextlib.suppress(OSError):
            about = self.table.stat()
            return about.st_ino, about.st_mtime_ns
        return None

    def run_directory(self, number: int) -> Path:
        """Of a point that is a job."""
        return self.runs / f"{number:06d}"

    def _gathered(self) -> tuple[Table, list[Path], int]:
        """The table with the rows of processes that are gone, their parts, and how many rows these had to add."""
        table = read_table(self.table) if self.table.exists() else empty({})
        gone, more = [], 0
        for path in sorted(self._parts.glob("*.jsonl")):
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                if lock(descriptor, 0):
                    more += table.fill(rows_of(path))
                    gone.append(path)
            finally:
                os.close(descriptor)
        return table, gone, more

    def _publish(self, table: Table, gone: list[Path], *, changed: bool) -> int:
        """Write the table if it has changed, remove the parts that are in it, and free their processes' points; give
        how many points nobody has then.
        """
        if changed:
            write_table(self.table, table)
        for path in gone:
            path.unlink()
        with Claims(self.path / CLAIMS) as claims:
            claims.settle(len(table), lambda: self._seen(table).status != LEFT)
            return int((claims.states()[: len(table)] == FREE).sum())  # the file may be of a longer table, now gone

    def _seen(self, table: Table) -> Table:
        """The table, with the rows of all parts."""
        for path in sorted(self._parts.glob("*.jsonl")):
            with contextlib.suppress(FileNotFoundError):  # somebody has just put it into the table
                table.fill(rows_of(path))
        return table

    def _require_same(self, table: Table, study: "Study", gone: Sequence[Point]) -> None:
        """Raise JobError unless the table is of the same study, and no point of it is gone from the study."""
        there = strict_json.mapping(str(table.attributes.get("asked")))
        different = list(_differences(there, json.loads(_text(study.asked))))
        keys = sorted({key for point in study.points[:1] for key in point})
        if sorted(table.axes) != keys:
            different.append(f"axes: {', '.join(sorted(table.axes))}")
        remedy = "name another folder by --out, or begin anew by --fresh"
        if different:
            raise JobError(f"{self.path} has the points of another study ({'; '.join(different)} there): {remedy}")
        if gone:
            raise JobError(
                f"{self.path} has a point that {study.path} has not any more: {label(gone[0])}. Axes may get further "
                f"values, and lose none: {remedy}"
            )

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """What the system refuses is an error that names the folder."""
        try:
            yield
        except OSError as cause:
            raise DataError(f"cannot write the folder {self.path} of the study: {cause.strerror or cause}") from cause

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """While no other process looks for parts, or makes one."""
        descriptor = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            lock(descriptor, 0, wait=True)
            yield
        finally:
            os.close(descriptor)


def _attributes(study: "Study") -> dict[str, Any]:
    """What a table says of its study."""
    return {**software(), "title": study.name, "asked": _text(study.asked)}


def _text(asked: dict[str, Any]) -> str:
    """As JSON; a TOML file may have dates."""
    return json.dumps(asked, sort_keys=True, default=str)


def _differences(there: Any, asked: Any, way: str = "") -> Iterator[str]:
    """Keys whose values differ, with the values of the table."""
    if isinstance(there, dict) and isinstance(asked, dict):
        for key in sorted(there.keys() | asked.keys()):
            yield from _differences(there.get(key), asked.get(key), f"{way}.{key}".lstrip("."))
    elif there != asked:
        yield f"{way} = {json.dumps(there)}"


def read_study(path: Path | str) -> Table:
    """The table of a study, also while it goes on.

    Args:
        path: of its folder, or of the table itself.

    Raises:
        DataError: there is none, or it is damaged.
    """
    path = Path(path)
    if path.name == TABLE:
        path = path.parent
    return Folder(path).read() if path.is_dir() else read_table(path)
