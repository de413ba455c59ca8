"""Reading somebody's data set that gives its samples one after another, for a while or for ever.

Every rank goes through the whole stream, and keeps its own part of each global batch. A stream that ends begins again;
samples that are left of it for less than a batch are left out. A data set may have

- ``set_epoch(epoch)``: called before each beginning;
- ``skip(samples)``: passes over so many faster than by making them, and gives how many there were before the end;
- ``state_dict()``, ``load_state_dict(state)``: where it stands, and to begin there; plain data.
"""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from functools import cached_property
from typing import Any

import numpy as np

from hpcopt.errors import DataError
from hpcopt.randomness import drawn
from hpcopt.workloads.order import share
from hpcopt.workloads.own.layout import Layout
from hpcopt.workloads.own.samples import Origin, Rows


class _EndError(Exception):
    """The stream has no more samples."""


class Stream:
    """The data set, at its beginning.

    Attributes:
        sample_0: of another such data set, so that this one still has it; with the generators that making it drew from.
        layout: of the samples.
    """

    def __init__(self, origin: Origin, *, beside: bool = False) -> None:
        """Open it.

        Args:
            origin: what is opened.
            beside: this runs in a thread beside the training, and leaves the process's generators alone.

        Raises:
            DataError: it cannot be opened.
        """
        self._origin, self._beside, self._dataset = origin, beside, origin.dataset()
        self._epoch = self._number = 0  # samples since the very first, given or passed over
        self._samples: Iterator[Any] | None = None

    @cached_property
    def sample_0(self) -> tuple[Any, list[str]]:
        with drawn() as names, self._origin.reading("sample 0"):
            samples = iter(self._origin.dataset())
            if samples is self._dataset:
                raise DataError("can be gone through once only: name a function or a class that makes it")
            sample = next(samples, _EndError)
        if sample is _EndError:
            raise DataError(f"{self._origin} has no samples")
        return sample, names

    @cached_property
    def layout(self) -> Layout:
        return self._origin.layout(self.sample_0[0])

    def batch(self, request: tuple[int, int, int]) -> Rows:
        """Samples ``first`` to ``stop`` of the next ``rows``, all of one pass.

        Raises:
            DataError: the data set raises, or ends before so many; or its samples are not alike.
        """
        first, stop, rows = request
        with self._origin.kept(self._beside):
            for _ in range(2):
                try:
                    self._pass_over(first)
                    numbered = [self._next() for _ in range(first, stop)]
                    self._pass_over(rows - stop)
                except _EndError:
                    continue
                return self._together(numbered) if numbered else {}
        raise DataError(f"{self._origin} ends before it has given {rows} samples, as many as [workload] batch")

    def pass_over(self, rows: int, times: int) -> None:
        """Leave out so many batches of ``rows``."""
        for _ in range(times):
            self.batch((0, 0, rows))

    def once(self, rank: int, size: int, chunk: int, most: int | None) -> Iterator[tuple[np.ndarray, Rows]]:
        """Rank's part of the stream from its beginning, up to its end or to ``most`` samples, as numbers and rows; the
        ranks share ``chunk`` samples at a time.
        """
        self._epoch, self._number, self._samples, over = 0, 0, None, False
        while not over and (most is None or self._number < most):
            rows = chunk if most is None else min(chunk, most - self._number)
            numbered: list[tuple[int, Any]] = []
            with self._origin.kept(self._beside):
                try:
                    while len(numbered) < rows:
                        numbered.append(self._next())
                except _EndError:
                    over = True
            mine = [numbered[place] for place in share(np.arange(len(numbered)), rank, size)]
            if mine:
                yield np.array([number for number, _ in mine]), self._together(mine)

    def _next(self) -> tuple[int, Any]:
        number = self._number
        self._origin.seed_sample(self._epoch, number, self._beside)
        with self._origin.reading(f"sample {number}"):
            sample = next(self._begun(), _EndError)
        if sample is _EndError:
            self._end()
        self._number += 1
        return number, sample

    def _pass_over(self, samples: int) -> None:
        skip = getattr(self._begun(), "skip", None) or getattr(self._dataset, "skip", None)
        if skip is None:
            for _ in range(samples):
                self._next()
        elif samples:
            with self._origin.reading(f"skip({samples})"):
                passed = skip(samples)
            self._number += samples if passed is None else int(passed)
            if passed is not None and passed < samples:
                self._end()

    def _begun(self) -> Iterator[Any]:
        if self._samples is None:
            with self._origin.reading("iter()"):
                if hasattr(self._dataset, "set_epoch"):
                    self._dataset.set_epoch(self._epoch)
                self._samples = iter(self._dataset)
        return self._samples

    def _end(self) -> None:
        self._epoch, self._samples = self._epoch + 1, None
        raise _EndError

    def _together(self, numbered: list[tuple[int, Any]]) -> Rows:
        with self._origin.reading("collate"):
            return self.layout.batch([sample for _, sample in numbered], [number for number, _ in numbered])

    def state_dict(self) -> dict[str, Any] | None:
        """Where the stream stands; None if only going through it again can tell."""
        if not hasattr(self._dataset, "state_dict"):
            return None
        with self._origin.reading("state_dict()"):
            return {"epoch": self._epoch, "number": self._number, "data": deepcopy(self._dataset.state_dict())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self._epoch, self._number, self._samples = int(state["epoch"]), int(state["number"]), None
        with self._origin.reading("load_state_dict()"):
            self._dataset.load_state_dict(state["data"])
