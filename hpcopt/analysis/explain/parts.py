"""Results on their way: a file for each piece, written whole by the rank that has it, and in the end one file of all.

A run that was killed finds the pieces that are there, and goes on with the others.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hpcopt.errors import DataError, JobError
from hpcopt.store import hdf5, strict_json
from hpcopt.store.files import remove, write_new

Arrays = Mapping[str, np.ndarray]
ASKED = "asked.json"


class Parts:
    """The pieces of a result file, in a folder beside it.

    Attributes:
        out: the file.
        folder: of the pieces; it is there while the file is not complete.
        asked: what decides the results, as JSON, once begun.
    """

    def __init__(self, out: Path) -> None:
        self.out, self.folder, self.asked = out, out.with_name(f"{out.name}.parts"), ""

    def begin(self, asked: Mapping[str, Any], *, fresh: bool) -> bool:
        """Make the folder; on one rank. Gives whether the file is there already, as it is asked for.

        Args:
            asked: what decides the results, as plain data.
            fresh: begin anew, whatever is there.

        Raises:
            JobError: other results are there, or begun.
            DataError: the folder cannot be written.
        """
        self.asked = text = json.dumps(asked, indent=1, sort_keys=True)
        try:
            if fresh:
                remove(self.folder)
                remove(self.out)
            if self.out.exists():
                with hdf5.reading(self.out, DataError, "--fresh replaces it") as file:
                    self._require(str(hdf5.get_attributes(file).get("asked")), text, self.out)
                return True
            self.folder.mkdir(parents=True, exist_ok=True)
            if (self.folder / ASKED).exists():
                self._require((self.folder / ASKED).read_text(encoding="utf-8"), text, self.folder)
            else:
                write_new(self.folder / ASKED, text.encode())
        except OSError as cause:
            raise DataError(f"cannot write {self.out}: {cause}") from cause
        return False

    def _require(self, there: str, asked: str, where: Path) -> None:
        if there == asked:
            return
        one, other = strict_json.mapping(there), strict_json.mapping(asked)
        different = sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
        raise JobError(
            f"{where} is of other explanations ({', '.join(different) or 'damaged'} differ): name another --out, or "
            "say --fresh to replace them"
        )

    def has(self, name: str) -> bool:
        """Whether a piece is there, whole."""
        return self._path(name).exists()

    def write(self, name: str, arrays: Arrays, attributes: Mapping[str, Any]) -> None:
        """Keep a piece.

        Raises:
            DataError: the file cannot be written.
        """
        try:
            with hdf5.create(self._path(name)) as file:
                hdf5.set_attributes(file, attributes)
                for key, values in arrays.items():
                    file.create_dataset(key, data=values)
        except OSError as cause:
            raise DataError(f"cannot write {self._path(name)}: {cause}") from cause

    def join(
        self,
        groups: Mapping[str, Sequence[str]],
        attributes: Mapping[str, Mapping[str, Any]],
        long_names: Mapping[str, str],
    ) -> None:
        """Make the one file out of the pieces, and remove these; on one rank.

        Args:
            groups: names of the pieces of each group of the file, in the order of their rows.
            attributes: of each group; "/" are the file's. A group gets those of its pieces too, numbers summed up.
            long_names: of the arrays, by name.
        """
        with hdf5.create(self.out) as file:
            hdf5.set_attributes(file, attributes.get("/", {}))
            for group, names in groups.items():
                target = file.require_group(group)
                self._join(target, names, long_names)
                own = [self._attributes(name) for name in names]
                hdf5.set_attributes(target, {**_added(own), **attributes.get(group, {})})
        remove(self.folder)

    def _join(self, target: h5py.Group, names: Sequence[str], long_names: Mapping[str, str]) -> None:
        """Put the rows of pieces one behind the other, one piece in memory at a time."""
        shapes: dict[str, tuple[int, tuple[int, ...], np.dtype[Any]]] = {}
        for name in names:
            with self._opened(name) as piece:
                for key, array in piece.items():
                    rows = shapes[key][0] if key in shapes else 0
                    shapes[key] = rows + len(array), array.shape[1:], array.dtype
        for key, (rows, shape, dtype) in shapes.items():
            whole, first = hdf5.contiguous(target, key, (rows, *shape), dtype), 0
            hdf5.set_attributes(whole, {"long_name": long_names[key], "units": "1"})
            for name in names:
                with self._opened(name) as piece:
                    if key in piece:
                        values = hdf5.whole(piece[key])
                        whole[first : first + len(values)] = values
                        first += len(values)

    def _attributes(self, name: str) -> dict[str, Any]:
        with self._opened(name) as piece:
            return hdf5.get_attributes(piece)

    def _opened(self, name: str) -> AbstractContextManager[h5py.File]:
        return hdf5.reading(self._path(name), DataError, "remove it and run the command again")

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.h5"


def _added(attributes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Numbers of all pieces summed up; of other attributes the first piece's."""
    first = attributes[0]
    return {key: sum(a[key] for a in attributes) if isinstance(value, float) else value for key, value in first.items()}
