"""Which sample goes where: a function of (seed, step, rank, size) alone, so a run resumes anywhere and at any number of
ranks.
"""

import numpy as np

from hpcopt.errors import DataError


def epoch_order(samples: int, batch: int, seed: int, epoch: int) -> np.ndarray:
    """The global batches of an epoch, shape (samples // batch, batch), int64.

    The samples are cut into ``batch`` strata of consecutive ones, and every batch has one of each, in a new random
    order each epoch: place j of a batch always holds a sample of stratum j. So a sample comes back to the same rank in
    every epoch, where a solver may keep a state of its own for it, and a rank reads one part of the data only.

    Raises:
        DataError: there is no memory for it.
    """
    if batch == samples:  # strata of one sample: there is nothing to draw
        return np.arange(samples)[None]
    generator = np.random.default_rng([seed, epoch])
    try:
        strata = np.array_split(np.arange(samples), batch)
        return np.stack([generator.permutation(stratum)[: samples // batch] for stratum in strata], axis=1)
    except (MemoryError, ValueError) as cause:  # the latter from 2^60 samples on
        raise DataError(f"there is no memory for an order of {samples} samples") from cause


def share(items: np.ndarray, rank: int, size: int) -> np.ndarray:
    """Rank's contiguous part of items; parts differ in length by at most one, the longer ones first."""
    least, more = divmod(len(items), size)
    start = rank * least + min(rank, more)
    return items[start : start + least + (rank < more)]


class TrainOrder:
    """Global batches of one epoch after the other; each is the same set of samples at any number of ranks."""

    def __init__(self, samples: int, batch: int, seed: int) -> None:
        self._samples, self._batch, self._seed = samples, batch, seed
        self._epoch = -1
        self._order = np.empty((0, batch), np.int64)

    @property
    def steps_per_epoch(self) -> int:
        """Complete batches in an epoch."""
        return self._samples // self._batch

    def indices(self, step: int, rank: int, size: int) -> np.ndarray:
        """The samples that rank has in the global batch of a step, shape (n,), int64."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, epoch_order(self._samples, self._batch, self._seed, epoch)
        return share(self._order[place], rank, size)
