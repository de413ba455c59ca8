"""The global batches of a split of somebody's data, with or without workers that read ahead."""

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import IterableDataset

from hpcopt.errors import DataError, JobError
from hpcopt.shapes.batch import TensorBatch
from hpcopt.shapes.samples import Samples
from hpcopt.shapes.solver import Tree
from hpcopt.workloads.ahead import ahead, in_turn
from hpcopt.workloads.order import TrainOrder, share
from hpcopt.workloads.own.readers import ReaderProcess
from hpcopt.workloads.own.samples import Indexed, Origin, Rows
from hpcopt.workloads.own.stream import Stream

TEST_BATCH = 256
DEPTH = 2  # batches that a worker makes before they are asked for

By = Literal["spawn", "thread"]
Request = tuple[int, np.ndarray, int]  # epoch, indices, samples in the global batch


class IndexedSplit:
    """A data set that is read by index.

    Attributes:
        samples: in the split.
        first, layout: sample 0, and what all have in common.
        state: None: the number of a step says which samples come next.
    """

    state: Tree = None

    def __init__(self, origin: Origin, dataset: Any, batch: int, workers: int, by: By) -> None:
        self._origin, self._batch, self._workers, self._by = origin, batch, workers, by
        self._opened = Indexed(origin, dataset=dataset, beside=workers > 0 and by == "thread")
        _may_draw(self._opened.draws, origin, workers, by)
        self.samples: int | None = len(self._opened)
        self.first, self.layout = self._opened.first, self._opened.layout
        self._processes: list[ReaderProcess] = []

    def train(self, rank: int, size: int, start: int) -> Iterator[TensorBatch]:
        """Rank's part of every global batch from a step on, for ever."""

        def requests(first: int, every: int) -> Iterator[Request]:
            order = TrainOrder(len(self._opened), self._batch, self._origin.seed)
            for step in count(first, every):
                yield step // order.steps_per_epoch, order.indices(step, rank, size), self._batch

        every = max(1, self._workers)
        return self._read([requests(start + worker, every) for worker in range(every)])

    def by_index(self) -> Samples | None:
        """Those of the split; what a sample draws at random is decided by its number."""
        return Samples(len(self._opened), self._batch, self._at)

    def _at(self, indices: np.ndarray, global_size: int) -> TensorBatch:
        return TensorBatch(self._opened.read((0, indices)), torch.from_numpy(indices), global_size)

    def load(self, state: Tree) -> None:
        """There is nothing to load."""

    def once(self, rank: int, size: int, most: int | None) -> Iterator[TensorBatch]:
        """Rank's part of the first ``most`` samples."""
        most = len(self._opened) if most is None else most
        mine = share(np.arange(most), rank, size)
        requests = [(0, mine[start : start + TEST_BATCH], most) for start in range(0, len(mine), TEST_BATCH)]
        every = max(1, self._workers)
        return self._read([iter(requests[worker::every]) for worker in range(every)])

    def _read(self, parts: Sequence[Iterator[Request]]) -> Iterator[TensorBatch]:
        if not self._workers:
            return self._batches(parts[0], self._opened.read)
        return in_turn([ahead(self._batches(p, self._reader(worker)), DEPTH) for worker, p in enumerate(parts)])

    def _reader(self, worker: int) -> Callable[[tuple[int, np.ndarray]], Rows]:
        if self._by == "thread":
            return self._opened.read
        if not self._processes:
            self._processes = [ReaderProcess(self._origin, Indexed) for _ in range(self._workers)]
        return lambda request: self._processes[worker].call("read", request)

    def _batches(
        self, requests: Iterator[Request], read: Callable[[tuple[int, np.ndarray]], Rows]
    ) -> Iterator[TensorBatch]:
        for epoch, indices, global_size in requests:
            yield TensorBatch(read((epoch, indices)), torch.from_numpy(indices), global_size)


class StreamSplit:
    """A data set that gives its samples one after another.

    Attributes:
        samples: None: nobody knows.
        first, layout: sample 0, and what all have in common.
        state: of the data set after the batch that was given last; None if it has none.
    """

    samples: int | None = None

    def __init__(self, origin: Origin, batch: int, workers: int, by: By) -> None:
        if workers > 1:
            raise JobError(f"[workload] workers = {workers}, but {origin} is a stream, which one worker reads: 0 or 1")
        self._origin, self._batch, self._workers, self._by = origin, batch, workers, by
        self._beside = workers > 0 and by == "thread"
        self._opened = Stream(origin, beside=self._beside)
        self.first, drawn = self._opened.sample_0
        _may_draw(drawn, origin, workers, by)
        self.layout, self.state, self._loaded = self._opened.layout, None, None

    def train(self, rank: int, size: int, start: int) -> Iterator[TensorBatch]:
        """Rank's part of every global batch from a step on, for ever; from the state that was loaded, if
        one was.
        """
        call = self._reader()
        batches = self._batches(call, rank, size, start)
        for state, batch in ahead(batches, DEPTH) if self._workers else batches:
            self.state = state
            yield batch

    def by_index(self) -> Samples | None:
        """There is no reading of a stream by index."""
        return None

    def load(self, state: Tree) -> None:
        """Let ``train`` begin where a state says."""
        self.state = self._loaded = state

    def once(self, rank: int, size: int, most: int | None) -> Iterator[TensorBatch]:
        """Rank's part of the samples from the beginning up to the end, or to ``most``."""
        for numbers, rows in self._opened.once(rank, size, TEST_BATCH, most):
            yield TensorBatch(rows, torch.from_numpy(numbers), most or len(numbers))

    def _batches(
        self, call: Callable[..., Any], rank: int, size: int, start: int
    ) -> Iterator[tuple[Tree, TensorBatch]]:
        if self._loaded is not None:
            call("load_state_dict", self._loaded)
        elif start:
            call("pass_over", self._batch, start)
        places = share(np.arange(self._batch), rank, size)
        request = int(places[0]), int(places[-1]) + 1, self._batch
        for step in count(start):
            rows = call("batch", request)
            yield call("state_dict"), TensorBatch(rows, torch.from_numpy(step * self._batch + places), self._batch)

    def _reader(self) -> Callable[..., Any]:
        if self._workers and self._by == "spawn":
            return ReaderProcess(self._origin, Stream).call
        stream = Stream(self._origin, beside=self._beside)
        stream.layout = self.layout
        return lambda method, *arguments: getattr(stream, method)(*arguments)


Split = IndexedSplit | StreamSplit


def open_split(origin: Origin, batch: int, workers: int, by: By) -> Split:
    """Open a data set in the way that it is read.

    Raises:
        DataError: it cannot be opened, has no samples, or sample 0 is none.
        JobError: it cannot be read by such workers.
    """
    dataset = origin.dataset()
    stream = isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__")
    if stream and not hasattr(dataset, "__iter__"):
        raise DataError(f"{origin} gave {type(dataset).__name__}, not a Dataset: it has no samples")
    if stream:
        return StreamSplit(origin, batch, workers, by)
    return IndexedSplit(origin, dataset, batch, workers, by)


def _may_draw(drawn: list[str], origin: Origin, workers: int, by: By) -> None:
    if workers and by == "thread" and drawn:
        raise JobError(
            f"{origin} draws random numbers ({' and '.join(drawn)}) while it makes a sample; threads would take "
            'them from the training\'s own: use workers_by = "spawn", or workers = 0'
        )
