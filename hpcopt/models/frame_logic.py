"""What a deductron's memory makes of one batch of frames, kept for the next network that differs in a gate or two.

A unit's memory is a function of what its two gates say of the distinct frames, of which there are few: 16 of the
W-language. Most moves of a walk change one gate, many none, and a move that is taken back brings back what was known.
"""

from functools import lru_cache

import numpy as np
from torch import Tensor

KEPT = 64  # memories of units


class FrameLogic:
    """Of frames in main memory, (n, T, inputs), which must not change.

    Attributes:
        frames: the frames.
        distinct: each once, (D, inputs).
    """

    def __init__(self, frames: Tensor) -> None:
        self.frames, (n, length, inputs) = frames, frames.shape
        self.distinct, kinds = np.unique(frames.numpy().reshape(-1, inputs), axis=0, return_inverse=True)
        self._kinds, self._times = kinds.reshape(n, length), 2 * np.arange(length)
        self._known = lru_cache(KEPT)(self._memory)

    def memory(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """z of a unit at all times, (n, T), float32, 0 or 1, from its gates on the distinct frames, each (D,), bool."""
        return self._known(left.tobytes(), right.tobytes())

    def _memory(self, left: bytes, right: bytes) -> np.ndarray:
        """Of the frames so far, the latest one decides that did not say keep."""
        clears, keeps = np.frombuffer(left, bool), np.frombuffer(left, bool) & np.frombuffer(right, bool)
        never = -2 * self._kinds.shape[1]  # even, as the time of what clears is; negative at any time
        said = self._times + np.where(keeps, never, ~clears)[self._kinds]
        z = np.zeros(self._kinds.shape, np.float32)
        z[:, 1:] = np.maximum.accumulate(said, 1)[:, :-1] & 1
        return z
