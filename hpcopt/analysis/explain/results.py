"""Explanations on disk, as an object: what ``hpcopt explain`` has written."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hpcopt.analysis.explain.scores import SCORES
from hpcopt.errors import DataError
from hpcopt.store import hdf5

INPUTS, METHODS_GROUP, PICTURES_GROUP = "inputs", "methods", "pictures"


@dataclass(frozen=True)
class Found:
    """What one method says, and how good it is.

    Attributes:
        about: the method in a few words.
        attribution: what each value of each input counts, (n, ...); of tokens (n, s), of maps (n, 1, height, width).
        seconds: that all inputs took, over all ranks.
        deletion, insertion: curves of the first inputs, (m, points).
        scores: of these, each (m,), by the names of SCORES.
    """

    about: str
    attribution: np.ndarray
    seconds: float
    deletion: np.ndarray
    insertion: np.ndarray
    scores: dict[str, np.ndarray]


@dataclass(frozen=True)
class Explanations:
    """A file of explanations.

    Attributes:
        attributes: of the file: title, kind, classes, what was asked.
        inputs: rows, what they look like, targets, predictions, probabilities, random curves; by name.
        words: of the tokens that occur, by number.
        methods: by name.
        pictures: of what layers answer to, with their captions.
    """

    attributes: dict[str, Any]
    inputs: dict[str, np.ndarray]
    words: dict[int, str]
    methods: dict[str, Found]
    pictures: dict[str, tuple[np.ndarray, dict[str, Any]]]

    def class_name(self, number: int) -> str:
        """The name of a class, or its number."""
        classes = self.attributes.get("classes", [])
        return str(classes[number]) if 0 <= number < len(classes) else f"class {number}"


def read_explanations(path: Path) -> Explanations:
    """Read a file of explanations into memory.

    Raises:
        DataError: it is missing, damaged, or something else.
    """
    with hdf5.reading(Path(path), DataError, "`hpcopt explain RUN` makes it") as file:
        if INPUTS not in file or METHODS_GROUP not in file:
            raise DataError(f"{path} holds no explanations: `hpcopt explain RUN` makes some")
        about = hdf5.get_attributes(file[INPUTS])
        tokens = np.asarray(about.get("token", [])).tolist()
        return Explanations(
            attributes=hdf5.get_attributes(file),
            inputs=_arrays(file[INPUTS]),
            words=dict(zip(tokens, about.get("word", []), strict=True)),
            methods={name: _found(group) for name, group in file[METHODS_GROUP].items()},
            pictures={
                name: (hdf5.whole(group["image"])[0], hdf5.get_attributes(group))
                for name, group in file.get(PICTURES_GROUP, {}).items()
            },
        )


def _found(group: h5py.Group) -> Found:
    arrays, about = _arrays(group), hdf5.get_attributes(group)
    return Found(
        about=str(about["about"]),
        attribution=arrays["attribution"],
        seconds=float(about["seconds"]),
        deletion=arrays["deletion"],
        insertion=arrays["insertion"],
        scores={name: arrays[name] for name in SCORES},
    )


def _arrays(group: h5py.Group) -> dict[str, np.ndarray]:
    return {name: hdf5.whole(array) for name, array in group.items()}
