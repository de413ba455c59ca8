"""Evaluation episodes: the same seeds at every evaluation, and an agent that does not explore."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from hpcopt.workloads.control.simulator import LostError, Replaceable

Found = TypeVar("Found")


class Evaluation:
    """Environments to evaluate in, which are kept. An episode depends on its seed and the policy alone: when they are
    lost and others take their place, all are acted again.

    Attributes:
        count: of them.
    """

    def __init__(self, simulators: Replaceable, count: int, seed_of: Callable[[int], int]) -> None:
        """``seed_of`` an episode's number is its seed."""
        self._simulators, self.count, self._seed_of = simulators, count, seed_of

    def first(self, numbers: Sequence[int]) -> np.ndarray:
        """What is observed where episodes begin, (n, observations), float32; at most ``count`` of them.

        Raises:
            HpcoptError: an environment fails, or is lost.
        """
        return self._tried(lambda: self._begin(numbers))

    def returns(self, numbers: Sequence[int], act: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Act in episodes to their end; give their undiscounted returns, (n,), float64.

        Args:
            numbers: of the episodes, at most ``count``.
            act: from observations, (k, observations), to actions in [-1, 1], (k, actions).

        Raises:
            HpcoptError: an environment fails, or is lost.
        """
        return self._tried(lambda: self._acted(numbers, act))

    def _begin(self, numbers: Sequence[int]) -> np.ndarray:
        simulator = self._simulators.now
        return np.stack([simulator.reset(place, self._seed_of(number)) for place, number in enumerate(numbers)])

    def _acted(self, numbers: Sequence[int], act: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        observed = self._begin(numbers)
        returns, alive = np.zeros(len(numbers)), np.arange(len(numbers))
        while len(alive):
            observed[alive], rewards, over = self._simulators.now.step(act(observed[alive]), alive.tolist())
            returns[alive] += rewards
            alive = alive[~over.any(1)]
        return returns

    def _tried(self, call: Callable[[], Found]) -> Found:
        while True:
            try:
                found = call()
            except LostError as cause:
                self._simulators.lose(cause)
            else:
                self._simulators.works()
                return found

    def close(self) -> None:
        """Let them go."""
        self._simulators.close()
