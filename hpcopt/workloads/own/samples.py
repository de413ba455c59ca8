"""Reading somebody's data set: by index, or as a stream.

What a data set draws at random while it makes a sample (torch's, numpy's and Python's own generators) is decided by the
run's seed, the epoch and the sample's number: it is the same on any rank, in any process, and after a resume.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from hpcopt.errors import DataError
from hpcopt.randomness import drawn, draws_kept, seed_draws
from hpcopt.seeds import EVERY_RANK, derive
from hpcopt.workloads.own.layout import Layout
from hpcopt.workloads.own.theirs import theirs
from hpcopt.workloads.own.user_code import function, made

Rows = dict[str, Tensor]


@dataclass(frozen=True)
class Origin:
    """What a job says of a split of its data: enough to open it anywhere.

    Attributes:
        split: "train" or "test".
        name, arguments: what gives the data set.
        target: key of the target in samples that are dictionaries.
        collate: dotted name of what puts samples together; "" for stacking.
        seed: of what is drawn.
    """

    split: str
    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    target: str = "targets"
    collate: str = ""
    seed: int = 0

    def __str__(self) -> str:
        return f'[workload] {self.split} = "{self.name}"'

    def dataset(self) -> Any:
        """The data set, with what it draws decided by the seed.

        Raises:
            DataError: it cannot be made.
        """
        with draws_kept():
            seed_draws(derive(self.seed, 0, EVERY_RANK, self.split))
            return made(self.name, self.arguments, str(self))

    def layout(self, sample: Any) -> Layout:
        """What all samples have in common, as sample 0 has it.

        Raises:
            DataError: a sample is nothing that a batch can be made of.
        """
        found = function(self.collate, {}, f'[workload] collate = "{self.collate}"') if self.collate else None
        with self.reading("collate"):
            try:
                return Layout.of(sample, self.target, found)
            except DataError as error:
                raise DataError(f"sample 0 {error}") from None

    def kept(self, beside: bool) -> AbstractContextManager[None]:
        """Around reading: the training's own draws go on as if nothing was drawn for data."""
        return nullcontext() if beside else draws_kept()

    def seed_sample(self, epoch: int, number: int, beside: bool) -> None:
        """Before a sample is made."""
        if not beside:
            seed_draws(derive(self.seed, epoch, number, self.split))

    @contextmanager
    def reading(self, what: str) -> Iterator[None]:
        """Around a call of the data set: whatever it raises names the split and what was read."""
        try:
            with theirs(what):
                yield
        except DataError as error:
            raise DataError(f"{self}: {error}") from error.__cause__


class Indexed:
    """A data set whose samples are read by index.

    Attributes:
        layout: of its samples.
        first: sample 0.
        draws: whether making it drew from the process's generators.
    """

    def __init__(self, origin: Origin, *, dataset: Any = None, beside: bool = False) -> None:
        """Open it.

        Args:
            dataset: if it is open already.
            beside: this runs in a thread beside the training, and leaves the process's generators alone.

        Raises:
            DataError: it has no samples, or sample 0 is none.
        """
        self._origin, self._beside = origin, beside
        self._dataset = origin.dataset() if dataset is None else dataset
        with origin.reading("len()"):
            self._length = len(self._dataset)
        if self._length == 0:
            raise DataError(f"{origin} has no samples")
        with drawn() as self.draws, origin.reading("sample 0"):
            self.first = self._dataset[0]
        self.layout = origin.layout(self.first)

    def __len__(self) -> int:
        return self._length

    def read(self, request: tuple[int, np.ndarray]) -> Rows:
        """The samples of an epoch and indices, (n,).

        Raises:
            DataError: the data set raises, or the samples are not alike; the message says which.
        """
        epoch, indices = request
        samples, numbers = [], indices.tolist()
        with self._origin.kept(self._beside):
            for index in numbers:
                self._origin.seed_sample(epoch, index, self._beside)
                with self._origin.reading(f"sample {index}"):
                    samples.append(self._dataset[index])
            with self._origin.reading("collate"):
                return self.layout.batch(samples, numbers)
