"""Episodes of environments, one after the other: what each needs to begin again where it stood.

An episode is a function of its seed and of the actions taken in it, as ``reset(seed=...)`` promises. So the state of an
environment is the number of its episode and these actions: taking them up again brings any simulator back to where it
stood, without a word of its inside.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from hpcopt.errors import DataError
from hpcopt.seeds import derive
from hpcopt.shapes.simulation import Ended, Layout

AGAIN = 3  # times in a row that environments are made anew without a step between


class LostError(Exception):
    """The process that environments ran in is gone."""


class Simulator(Protocol):
    """Environments, as ``hpcopt.workloads.control.here.Here`` has them."""

    def reset(self, index: int, seed: int) -> np.ndarray: ...
    def step(self, actions: np.ndarray, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]: ...
    def close(self) -> None: ...


class Episodes:
    """The ``hpcopt.shapes.simulation.Environments`` of gymnasium's.

    Attributes:
        observed: what to act on, (n, observations), float32.
        restarts: how often the environments were lost and made anew.
    """

    def __init__(
        self, make: Callable[[], Simulator], numbers: Sequence[int], layout: Layout, seed: int, *, restart: bool
    ) -> None:
        """Begin the first episode of each.

        Args:
            make: the environments of these ``numbers``.
            layout: of transitions.
            seed: that each episode's is derived from.
            restart: go on with new ones when they are lost.
        """
        self._make, self._numbers, self._layout, self._seed, self._restart = make, list(numbers), layout, seed, restart
        self._simulator, self.restarts, self._lost = make(), 0, 0
        count = len(numbers)
        self._indices = range(count)
        self.observed = np.empty((count, layout.observations), np.float32)
        self._episode, self._actions = [0] * count, [list[np.ndarray]() for _ in numbers]
        self._totals = [0.0] * count
        self._begin_all()

    def step(self, actions: np.ndarray, rows: np.ndarray) -> list[Ended] | None:
        try:
            observed, rewards, over = self._simulator.step(actions, self._indices)
        except LostError as cause:
            self._make_anew(cause)
            return None
        self._lost = 0
        self._layout.write(rows, self.observed, actions, rewards, over[:, 0], observed)
        self.observed = observed
        for index in self._indices:
            self._actions[index].append(actions[index].copy())
            self._totals[index] += float(rewards[index])
        at_end = np.flatnonzero(over.any(1)).tolist()
        ended = [Ended(self._totals[index], len(self._actions[index])) for index in at_end]
        try:
            for index in at_end:
                self._episode[index] += 1
                self._begin(index)
        except LostError as cause:  # the transitions of this step stand
            self._make_anew(cause)
        return ended

    def _begin(self, index: int) -> None:
        """Begin the episode of an environment."""
        self.observed[index] = self._simulator.reset(index, self._seed_of(index))
        self._actions[index], self._totals[index] = [], 0.0

    def _begin_all(self) -> None:
        try:
            for index in self._indices:
                self._begin(index)
        except LostError as cause:
            self._make_anew(cause)

    def _seed_of(self, index: int) -> int:
        return derive(self._seed, self._episode[index], self._numbers[index], "episode") % 2**31

    def _make_anew(self, cause: LostError) -> None:
        """All environments begin new episodes; what was left of those under way is lost.

        Raises:
            DataError: that is not wished for, or does not help.
        """
        self._lost += 1
        if not self._restart:
            raise DataError(
                f'the process of a collector\'s environments is gone ({cause}); [workload] lost = "restart" would '
                "go on with new ones"
            ) from cause
        if self._lost > AGAIN:
            raise DataError(f"the process of a collector's environments was lost {AGAIN} times in a row ({cause})")
        self._simulator.close()
        self._simulator, self.restarts = self._make(), self.restarts + 1
        self._episode = [episode + 1 for episode in self._episode]
        self._begin_all()

    def state_dict(self) -> dict[str, Any]:
        none = np.empty((0, self._layout.actions), np.float32)
        return {
            str(number): {"episode": self._episode[index], "actions": np.array(self._actions[index] or none)}
            for index, number in enumerate(self._numbers)
        }

    def load_state_dict(self, states: Mapping[str, Any]) -> None:
        known = {i: states[str(number)] for i, number in enumerate(self._numbers) if str(number) in states}
        for index, state in known.items():
            self._episode[index] = state["episode"]
        try:
            for index, state in known.items():
                self._begin(index)
                self._take_again(index, np.asarray(state["actions"], np.float32))
        except LostError as cause:
            self._make_anew(cause)

    def _take_again(self, index: int, actions: np.ndarray) -> None:
        for action in actions:
            observed, rewards, over = self._simulator.step(action[None], [index])
            if over.any():
                raise DataError(
                    "an environment ends an episode earlier than it did before, with the same seed and actions: it is "
                    "not reproducible, or another than the checkpoint's; start over with --fresh"
                )
            self.observed[index] = observed[0]
            self._actions[index].append(action.copy())
            self._totals[index] += float(rewards[0])

    def close(self) -> None:
        self._simulator.close()
