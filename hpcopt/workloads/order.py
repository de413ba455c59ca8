"""Which sample goes where: a function of (seed, step, rank, size) alone, so a run resumes anywhere and at any number of
ranks.
"""

import numpy as np


def epoch_order(samples: int, seed: int, epoch: int) -> np.ndarray:
    """The order of all samples in an epoch, shape (samples,), int64."""
    return np.random.default_rng([seed, epoch]).permutation(samples)


def share(items: np.ndarray, rank: int, size: int) -> np.ndarray:
    """Rank's contiguous part of items; parts differ in length by at most one, the longer ones first."""
    return np.array_split(items, size)[rank]


class TrainOrder:
    """Global batches of one epoch after the other; each is the same set of samples at any number of ranks."""

    def __init__(self, samples: int, batch: int, seed: int) -> None:
        self._samples, self._batch, self._seed = samples, batch, seed
        self._epoch = -1
        self._order = np.empty(0, np.int64)

    @property
    def steps_per_epoch(self) -> int:
        """Complete batches in an epoch."""
        return self._samples // self._batch

    def indices(self, step: int, rank: int, size: int) -> np.ndarray:
        """The samples that rank has in the global batch of a step, shape (n,), int64."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, epoch_order(self._samples, self._seed, epoch)
        return share(self._order[place * self._batch : (place + 1) * self._batch], rank, size)
