"""Shards of arrays as a torch Dataset, for a job to name: rows are read where they are needed."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from hpcopt.errors import DataError
from hpcopt.store.shards import Shards


class Arrays(Dataset[tuple[Tensor, ...]]):
    """The rows of a split: each a tuple of inputs, then the target."""

    def __init__(self, folder: str, split: str, inputs: Sequence[str], target: str) -> None:
        """Open the shards that ``python -m hpcopt.prepare arrays`` or ``write_shards`` made.

        Args:
            folder: of the data set.
            split: "train" or "test".
            inputs: names of arrays; several that hold one number a row make one input, a vector.
            target: name of the array of targets.

        Raises:
            DataError: the shards are missing or damaged, or lack an array.
        """
        self._shards, self._inputs, self._target = Shards(Path(folder), split), list(inputs), target
        missing = {*inputs, target} - self._shards.fields.keys()
        if missing:
            raise DataError(f"{folder} has {', '.join(self._shards.fields)}, not {', '.join(sorted(missing))}")
        self._columns = len(self._inputs) > 1 and all(self._shards.fields[name].shape == () for name in inputs)

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        row = {name: torch.from_numpy(values)[0] for name, values in self._shards.rows(np.array([index])).items()}
        inputs = [row[name] for name in self._inputs]
        return (
            torch.stack(inputs) if self._columns else inputs[0],
            *([] if self._columns else inputs[1:]),
            row[self._target],
        )
