"""Training data as HDF5 shards: ``DATASET/{train,test}-00000.h5 ...``, written once, offline, and read by every rank
where it needs rows.

Each array of a shard is one contiguous HDF5 dataset, so rows are gathered through a memory map of its bytes: the ranks
of a node share the pages that the operating system has cached, and no rank holds the data set.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from hpcopt.errors import DataError
from hpcopt.store import hdf5

SCHEMA_VERSION = 1


class About(NamedTuple):
    """What an array means to a person who meets the file without this program."""

    long_name: str
    units: str = "1"
    dims: tuple[str, ...] = ()


class Field(NamedTuple):
    """One array of a data set: its dtype and the shape of one row."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class _Shard(NamedTuple):
    path: Path
    rows: int
    offsets: dict[str, int]  # bytes, of each array's values in the file
    checksums: dict[str, str]


def shard_path(folder: Path, split: str, shard: int) -> Path:
    """Path of one shard."""
    return folder / f"{split}-{shard:05d}.h5"


def write_shards(
    folder: Path,
    split: str,
    arrays: Mapping[str, np.ndarray],
    *,
    rows_per_shard: int,
    attributes: Mapping[str, Any],
    about: Mapping[str, About] | None = None,
) -> list[Path]:
    """Write the rows of arrays, each (N, ...), as shards of at most rows_per_shard rows; each file appears whole or not
    at all.

    Args:
        folder: made if it is missing.
        split: "train" or "test".
        arrays: numeric arrays with the same number of rows N >= 0.
        rows_per_shard: rows of every shard but the last.
        attributes: provenance and scales, written to the root of every shard.
        about: long name, units and dimension labels by array name.
    """
    rows = {array.shape[0] for array in arrays.values()}
    if len(rows) != 1:
        raise DataError(f"the arrays of a data set need the same number of rows, not {sorted(rows)}")
    total = rows.pop()
    folder.mkdir(parents=True, exist_ok=True)
    firsts = range(0, max(total, 1), rows_per_shard)
    paths = []
    for shard, first in enumerate(firsts):
        path = shard_path(folder, split, shard)
        with hdf5.create(path) as file:
            known = {"split": split, "shard": shard, "shards_expected": len(firsts), "rows_expected": total}
            hdf5.set_attributes(
                file, {"Conventions": hdf5.CONVENTIONS, "schema_version": SCHEMA_VERSION, **known, **attributes}
            )
            for name, array in arrays.items():
                _write(
                    file,
                    name,
                    np.ascontiguousarray(array[first : first + rows_per_shard]),
                    (about or {}).get(name, About(name)),
                )
        paths.append(path)
    return paths


def _write(file: h5py.File, name: str, values: np.ndarray, about: About) -> None:
    dataset = hdf5.contiguous(file, name, values.shape, values.dtype)
    dataset[...] = values
    for dim, label in zip(dataset.dims, about.dims, strict=False):
        dim.label = label
    checksum = hashlib.sha256(values.data if values.size else b"").hexdigest()
    hdf5.set_attributes(dataset, {"long_name": about.long_name, "units": about.units, "sha256": checksum})


class Shards:
    """The rows of one split of a data set, over all its shards. Opens headers only; values are read by rows().

    Attributes:
        fields: dtype and row shape by array name.
        attributes: the root attributes of the shards: provenance, classes, scales.

    Raises:
        DataError: no such data set, a shard is missing, truncated or damaged, or the shards do not belong together.
    """

    def __init__(self, folder: Path, split: str) -> None:
        self.folder, self.split = Path(folder).absolute(), split  # a part of a job may change the working directory
        command = f"python -m hpcopt.prepare {self.folder.name} --data-dir {self.folder.parent}"
        self._remedy = f"prepare it again with `{command} --force`"
        first = shard_path(self.folder, split, 0)
        if not first.exists():
            raise DataError(f"no {split} data in {self.folder}: prepare it with `{command}`")
        self.fields, self.attributes, shard = self._open(first)
        self._shards = [shard]
        for number in range(1, self.attributes["shards_expected"]):
            self._add(shard_path(self.folder, split, number))
        self._starts = np.cumsum([0, *(s.rows for s in self._shards)])
        expected = self.attributes["rows_expected"]
        if len(self) != expected:
            raise DataError(f"{self.folder}: {len(self)} {split} rows where {expected} were written: {self._remedy}")
        self._maps: dict[tuple[int, str], np.ndarray] = {}

    def __len__(self) -> int:
        """Number of rows over all shards."""
        return int(self._starts[-1])

    def rows(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Gather rows from any shards, in the order given, repetitions allowed.

        Args:
            indices: integers in [0, len(self)), shape (k,).

        Returns:
            Private copies by array name, each (k, *row shape).

        Raises:
            IndexError: an index is outside of the data set.
        """
        indices = np.asarray(indices, np.int64)
        if indices.size and (indices.min() < 0 or indices.max() >= len(self)):
            raise IndexError(f"rows {indices.min()} to {indices.max()} asked of {len(self)}")
        if len(self._shards) == 1:
            return {name: self._map(0, name)[indices] for name in self.fields}
        owner = np.searchsorted(self._starts, indices, side="right") - 1
        out = {name: np.empty((indices.size, *field.shape), field.dtype) for name, field in self.fields.items()}
        for shard in np.unique(owner):
            wanted = owner == shard
            local = indices[wanted] - self._starts[shard]
            for name, values in out.items():
                values[wanted] = self._map(int(shard), name)[local]
        return out

    def verify(self, part: int = 0, parts: int = 1) -> None:
        """Read every byte of the shards part, part + parts, ... and compare with the checksums, so that the ranks of a
        job can share the work.

        Raises:
            DataError: naming the file, the array and what to do.
        """
        for shard in self._shards[part::parts]:
            for name, field in self.fields.items():
                nbytes = shard.rows * int(np.prod(field.shape)) * field.dtype.itemsize
                digest = hashlib.sha256()
                for block in hdf5.blocks(shard.path, shard.offsets[name], nbytes):
                    digest.update(block)
                if digest.hexdigest() != shard.checksums[name]:
                    raise DataError(f"{shard.path}: `{name}` does not match its checksum: {self._remedy}")

    def require_values(self, name: str, least: int, most: int, part: int = 0, parts: int = 1) -> None:
        """Check the values of an array in the shards part, part + parts, ...

        Raises:
            DataError: one is out of range; the message names the file.
        """
        for number in range(part, len(self._shards), parts):
            shard = self._shards[number]
            values = self._map(number, name) if shard.rows else np.empty(0)
            if values.size and (values.min() < least or values.max() > most):
                found = f"{values.min()} to {values.max()}, not {least} to {most}"
                raise DataError(f"{shard.path}: `{name}` has {found}: {self._remedy}")

    def _open(self, path: Path) -> tuple[dict[str, Field], dict[str, Any], _Shard]:
        with hdf5.reading(path, DataError, self._remedy) as file:
            attributes = hdf5.get_attributes(file)
            if attributes.get("schema_version") != SCHEMA_VERSION:
                raise ValueError(f"schema_version {attributes.get('schema_version')}, expected {SCHEMA_VERSION}")
            for key, kind in (("split", str), ("shard", int), ("shards_expected", int), ("rows_expected", int)):
                if not isinstance(attributes[key], kind):
                    raise ValueError(f"its {key} is {attributes[key]!r}")
            if any(dataset.dtype.kind not in "biuf" for dataset in file.values()):
                raise ValueError("it holds arrays of something else than numbers")
            fields = {name: Field(dataset.dtype, dataset.shape[1:]) for name, dataset in file.items()}
            (rows,) = {dataset.shape[0] for dataset in file.values()}
            offsets = {name: hdf5.place(dataset) for name, dataset in file.items()}
            checksums = {name: str(hdf5.get_attributes(dataset)["sha256"]) for name, dataset in file.items()}
        return fields, attributes, _Shard(path, rows, offsets, checksums)

    def _add(self, path: Path) -> None:
        fields, attributes, shard = self._open(path)
        together = ("shards_expected", "rows_expected", "split")
        if fields != self.fields or any(attributes[key] != self.attributes[key] for key in together):
            raise DataError(f"{path} does not belong with {self._shards[0].path}: {self._remedy}")
        if attributes["shard"] != len(self._shards):
            raise DataError(f"{path} holds shard {attributes['shard']}: {self._remedy}")
        self._shards.append(shard)

    def _map(self, number: int, name: str) -> np.ndarray:
        if (number, name) not in self._maps:
            shard, field = self._shards[number], self.fields[name]
            shape = (shard.rows, *field.shape)
            found = np.memmap(shard.path, field.dtype, "r", shard.offsets[name], shape)
            self._maps[number, name] = found.view(np.ndarray)  # whose rows are found sooner
        return self._maps[number, name]
