"""The table of a study: a row a point, with its place on the axes, how it went, and its results. One HDF5 file."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from hpcopt.errors import DataError
from hpcopt.store import hdf5
from hpcopt.study.grid import Point, identity, is_number

SCHEMA_VERSION = 1
LEFT, DONE, FAILED = "left", "done", "failed"
REMEDY = "`hpcopt study FILE.toml` makes it, with --fresh where a damaged one stands"
OWN = {
    "status": "left, done or failed",
    "seconds": "that it took, the last try alone",
    "message": "why it failed",
}
FILE_ATTRIBUTES = ("axes", "results", "Conventions", "schema_version")
CHUNK_ROWS = 4096


class Row(NamedTuple):
    """What became of a point: its number, DONE or FAILED, seconds, results by name, and why it failed."""

    number: int
    status: str
    seconds: float
    results: dict[str, float]
    message: str = ""


@dataclass
class Table:
    """All points of a study and what is known of them; N points.

    Attributes:
        attributes: of the file: title, what was asked, software.
        axes: a value a point, by key: numbers (N,) int64 or float64, anything else as N objects.
        status: LEFT, DONE or FAILED, N texts.
        seconds: (N,) float64, NaN where the point is left.
        results: by name, (N,) float64, NaN where there is none.
        message: N texts, why points failed.
    """

    attributes: dict[str, Any]
    axes: dict[str, np.ndarray]
    status: np.ndarray
    seconds: np.ndarray
    message: np.ndarray
    results: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.status)

    @property
    def points(self) -> list[Point]:
        """The place of each row on the axes."""
        return [
            dict(zip(self.axes, row, strict=True))
            for row in zip(*(column.tolist() for column in self.axes.values()), strict=True)
        ]

    def extend(self, points: Sequence[Point]) -> None:
        """Add rows of points that are left."""
        if not points:
            return
        old, more = self.points, len(points)
        self.axes = {key: _column([point[key] for point in [*old, *points]]) for key in points[0]}
        self.status = np.concatenate([self.status, _objects([LEFT] * more)])
        self.seconds = np.concatenate([self.seconds, np.full(more, np.nan)])
        self.message = np.concatenate([self.message, _objects([""] * more)])
        self.results = {name: np.concatenate([old, np.full(more, np.nan)]) for name, old in self.results.items()}

    def fill(self, rows: Iterable[Row]) -> int:
        """Note what became of points that are left; of two rows for one the first counts. Give how many counted."""
        counted = 0
        for row in rows:
            if not 0 <= row.number < len(self) or self.status[row.number] != LEFT:
                continue
            self.status[row.number], self.seconds[row.number] = row.status, row.seconds
            self.message[row.number] = row.message
            for name, value in row.results.items():
                if name not in self.results:
                    self.results[name] = np.full(len(self), np.nan)
                self.results[name][row.number] = value
            counted += 1
        return counted

    def forget(self, status: str) -> None:
        """Let points of a status be left again."""
        chosen = self.status == status
        self.status[chosen], self.message[chosen], self.seconds[chosen] = LEFT, "", np.nan
        for values in self.results.values():
            values[chosen] = np.nan


def empty(attributes: Mapping[str, Any]) -> Table:
    """A table without rows."""
    return Table(dict(attributes), {}, _objects([]), np.zeros(0), _objects([]))


def write_table(path: Path, table: Table) -> None:
    """Write the file; it appears whole, in the place of one that is there.

    Raises:
        DataError: it cannot be written.
    """
    try:
        with hdf5.create(path) as file:
            about = {"Conventions": hdf5.CONVENTIONS, "schema_version": SCHEMA_VERSION, **table.attributes}
            hdf5.set_attributes(file, {**about, "axes": list(table.axes), "results": list(table.results)})
            for name, values in {**table.axes, **table.results}.items():
                _write(file, name, values, "axis" if name in table.axes else "result")
            for name, meaning in OWN.items():
                hdf5.set_attributes(_write(file, name, getattr(table, name), "row"), {"long_name": meaning})
    except (OSError, RuntimeError) as cause:  # HDF5 reports a full disk as either
        raise DataError(f"cannot write {path}: {cause}") from cause


def read_table(path: Path) -> Table:
    """Read the file into memory.

    Raises:
        DataError: it is missing, damaged, of another version, or something else.
    """
    with hdf5.reading(path, DataError, REMEDY) as file:
        about = hdf5.get_attributes(file)
        if about.get("schema_version") != SCHEMA_VERSION or "axes" not in about:
            raise DataError(f"{path} is no table of a study that this hpcopt reads: {REMEDY}")
        own = {name: _read(file[name]) for name in OWN}
        table = Table(
            attributes={k: v for k, v in about.items() if k not in FILE_ATTRIBUTES},
            axes={name: _read(file[name]) for name in list(about["axes"])},
            results={name: _read(file[name]) for name in list(about.get("results", []))},
            **own,
        )
        if any(len(values) != len(table) for values in [*table.axes.values(), *table.results.values(), *own.values()]):
            raise ValueError("its columns are of different lengths")
        return table


def _write(file: h5py.File, name: str, values: np.ndarray, role: str) -> h5py.Dataset:
    attributes: dict[str, Any] = {"role": role}
    if values.dtype.kind == "O":
        plain = all(isinstance(value, str) for value in values)
        attributes["kind"] = "text" if plain else "json"
        raw = [(value if plain else json.dumps(value, sort_keys=True)).encode() for value in values]
        values = np.array(raw, h5py.string_dtype("utf-8", max(1, *map(len, raw), 1)))
    chunks = {"chunks": (min(len(values), CHUNK_ROWS),), "compression": "gzip", "shuffle": True, "fletcher32": True}
    dataset = file.create_dataset(name, data=values, **(chunks if len(values) else {}))
    hdf5.set_attributes(dataset, attributes)
    return dataset


def _read(dataset: h5py.Dataset) -> np.ndarray:
    values = hdf5.whole(dataset)
    if values.dtype.kind not in "SO":
        return values
    texts = [value.decode() for value in values.tolist()]
    return _objects(map(json.loads, texts) if hdf5.get_attributes(dataset).get("kind") == "json" else texts)


def _column(values: Sequence[Any]) -> np.ndarray:
    """Values as numbers if all are, and none would be another number."""
    if all(type(value) is int for value in values):
        return np.array(values, np.int64)
    if all(is_number(value) and float(value) == value for value in values):
        return np.array(values, np.float64)
    return _objects(values)


def _objects(values: Iterable[Any]) -> np.ndarray:
    listed = list(values)
    column = np.empty(len(listed), object)
    column[:] = listed
    return column


def key_of(point: Point) -> tuple[Any, ...]:
    """What makes a point the same as another, whatever the order of its keys."""
    return tuple((key, identity(point[key])) for key in sorted(point))
