"""How long a training step takes, for those who measure it and those who read it: as long as its slowest rank, without
the evaluations and checkpoints between steps.
"""

from collections.abc import Iterable, Sequence

import numpy as np

BESIDE_THE_STEP = ("evaluate", "checkpoint")  # phases that are not part of training steps
BESIDE_THE_THREAD = ("encode", "comm", "decode")  # of an exchange in a thread of its own, or while one waits for it
COLD = 10  # first steps after a start, which pay for what the others find ready


def warm(step: np.ndarray, starts: Iterable[int]) -> np.ndarray:
    """Which rows count for timing, (n,), bool: not the first ten steps after a start, if there are more than twenty.

    Args:
        step: numbers of the steps, rising, (n,).
        starts: steps done before each start.
    """
    rows = np.ones(len(step), bool)
    for start in starts:
        after = step > start
        if (after & (step <= start + 2 * COLD)).sum() >= 2 * COLD and after.sum() > 2 * COLD:
            rows &= ~(after & (step <= start + COLD))
    return rows


def in_thread(phases: Sequence[str]) -> np.ndarray:
    """Which phases are the training thread's in a step, (F,), bool."""
    return np.array([phase not in (*BESIDE_THE_STEP, *BESIDE_THE_THREAD) for phase in phases])


def between_steps(phases: Sequence[str]) -> np.ndarray:
    """Which phases pass between steps, (F,), bool."""
    return np.array([phase in BESIDE_THE_STEP for phase in phases])


def training_s(wall_s: np.ndarray, between_s: np.ndarray, rank_s: np.ndarray) -> np.ndarray:
    """Seconds of each step, (n,).

    Args:
        wall_s: between the ends of two steps on rank 0, (n,).
        between_s: of it in phases between steps, mean over the ranks, (n,).
        rank_s: of a rank's training thread in its phases, largest over the ranks, (n,).
    """
    slowest: np.ndarray = np.maximum(wall_s - between_s, rank_s)
    return slowest
