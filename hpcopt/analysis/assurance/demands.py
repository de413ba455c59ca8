"""A stream of operational demands, each with whether the network failed, which may still grow.

Three kinds of file: CSV with a heading; HDF5 with an array a column, at its root or in a group ``demands``; a run's
metrics.h5 with a table ``demands``. A column ``failure`` has 1 for each demand that failed and 0 for the others, or a
column ``correct`` has it the other way round; ``class`` may say what kind of demand it was.
"""

import csv
import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from hpcopt.errors import DataError
from hpcopt.store import hdf5, metrics
from hpcopt.store.files import require_plain

TABLE = "demands"
METRICS = "metrics.h5"
KINDS = ("failure", "correct")
CLASS = "class"
HDF5_SIGNATURE = b"\x89HDF"
REMEDY = "give a CSV or HDF5 file with a column failure (or correct) of 0 and 1"

Failures = NDArray[np.bool_]
Columns = Mapping[str, Sequence[str] | NDArray[Any]]


class Demands:
    """The demands of a file up to its last look.

    Attributes:
        path: of the file.
        failures: whether each failed, (n,), bool.
        classes: of each; empty if the file has none.
    """

    def __init__(self, path: Path) -> None:
        """Take the first look.

        Args:
            path: of the file, or of a run directory, whose metrics.h5 it is then.

        Raises:
            DataError, MetricsError: it is missing, damaged, or no stream of demands.
        """
        self.path = path / METRICS if path.is_dir() else path
        self.failures: Failures = np.zeros(0, bool)
        self.classes: list[str] = []
        self._offset = 0  # of a CSV file: bytes read
        self._heading: list[str] | None = None
        self.look()

    def look(self) -> int:
        """Read the demands that have come since the last look; how many they are.

        Raises:
            DataError, MetricsError: as when it was made, or the file has fewer demands than before.
        """
        before = len(self)
        if self.path.name == METRICS:
            columns: Columns = metrics.read(self.path, lambda file: _table(file.get(TABLE), before, self.path))
        elif _is_hdf5(self.path):
            with hdf5.reading(self.path, DataError, REMEDY) as file:
                columns = _table(_guarded(file.get(TABLE, file), self.path), before, self.path)
        else:
            columns = self._lines()
        self._add(columns)
        return len(self) - before

    def __len__(self) -> int:
        return len(self.failures)

    @property
    def failed(self) -> int:
        """k."""
        return int(self.failures.sum())

    @property
    def counts(self) -> Mapping[str, int]:
        """Demands of each class."""
        return Counter(self.classes)

    def digest(self, first: int) -> str:
        """Of the first demands: SHA-256 of a byte for each."""
        return hashlib.sha256(self.failures[:first].tobytes()).hexdigest()

    def _add(self, columns: Columns) -> None:
        """Append rows once all of them are known to be good."""
        kind = next((kind for kind in KINDS if kind in columns), None)
        if kind is None:
            known = ", ".join(columns) or "none"
            raise DataError(f"{self.path} has no column failure or correct, but {known}: {REMEDY}")
        values = _binary(columns[kind], self.path, kind, len(self))
        classes = [c.decode(errors="replace") if isinstance(c, bytes) else str(c) for c in columns.get(CLASS, ())]
        if len(values) != len(classes) and (CLASS in columns or self.classes):
            raise DataError(f"{self.path} has {len(values)} new demands and {len(classes)} classes")
        self.failures = np.concatenate([self.failures, values == (kind == "failure")])
        self.classes += classes

    def _lines(self) -> dict[str, list[str]]:
        """New lines of a CSV file by column; a last line without its end is still being written."""
        try:
            with self.path.open("rb") as file:
                if file.seek(0, 2) < self._offset:
                    raise DataError(f"{self.path} is shorter than it was: a stream of demands only grows")
                file.seek(self._offset)
                new = file.read()
            whole = new[: new.rfind(b"\n") + 1]
            rows = [row for row in csv.reader(whole.decode("utf-8").splitlines()) if row]
        except (OSError, UnicodeDecodeError, csv.Error) as cause:
            raise DataError(f"{self.path} cannot be read as a stream of demands ({cause}): {REMEDY}") from None
        heading = self._heading
        if heading is None:
            if not rows:
                raise DataError(f"{self.path} is empty: {REMEDY}")
            heading, rows = [name.strip() for name in rows[0]], rows[1:]
        if odd := next((row for row in rows if len(row) != len(heading)), None):
            raise DataError(f"{self.path}: the line {','.join(odd)[:80]!r} has not the columns {', '.join(heading)}")
        self._heading, self._offset = heading, self._offset + len(whole)
        return {name: [row[i].strip() for row in rows] for i, name in enumerate(heading)}


def has_demands(run: Path) -> bool:
    """Whether a run's metrics have a table of demands."""
    file = run / METRICS
    return file.exists() and bool(metrics.read(file, lambda opened: TABLE in opened))


def _is_hdf5(path: Path) -> bool:
    try:
        require_plain(path, links=True)  # a FIFO would be waited for
        with path.open("rb") as file:
            return file.read(4) == HDF5_SIGNATURE
    except OSError as cause:
        raise DataError(f"{path} cannot be read ({cause.strerror or cause}): {REMEDY}") from None


def _guarded(table: h5py.Group, path: Path) -> h5py.Group:
    """The group, unless its classes lie where HDF5 has no checksum: a damaged heap has the library search for ever."""
    kinds = table[CLASS].dtype if isinstance(table, h5py.Group) and CLASS in table else np.dtype(int)
    if kinds.kind == "O":
        raise DataError(f'{path}: class is text of variable length; write it as np.array(classes, "S"), or as numbers')
    return table


def _table(table: h5py.Group | None, before: int, path: Path) -> dict[str, np.ndarray]:
    """New rows of the columns."""
    if not isinstance(table, h5py.Group):
        raise DataError(f"{path} has no table {TABLE}: {REMEDY}")
    found = {name: hdf5.filled(table[name]) for name in (*KINDS, CLASS) if name in table}
    if any(column.ndim != 1 or len(column) < before for column in found.values()):
        raise DataError(f"{path}: a column of demands is no list, or is shorter than it was: a stream only grows")
    return {name: column[before:] for name, column in found.items()}


def _binary(values: Iterable[Any], path: Path, kind: str, before: int) -> Failures:
    """Values that are all 0 or 1."""
    given = np.asarray(values)
    if given.dtype.kind in "biuf":
        good = np.isin(given, (0, 1))
        found = given == 1
    else:
        texts = np.array([str(value) for value in given.tolist()], dtype=str)
        good, found = np.isin(texts, ("0", "1")), texts == "1"
    if not good.all():
        at = int(np.argmin(good))
        raise DataError(f"{path}: {kind} of demand {before + at + 1} is {str(given[at])[:40]!r}, neither 0 nor 1")
    return np.asarray(found, bool)
