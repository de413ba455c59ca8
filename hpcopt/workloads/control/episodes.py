"""Episodes of environments, one after the other: what each needs to begin again where it stood.

An episode is a function of its seed and of the actions taken in it, as ``reset(seed=...)`` promises. So the state of an
environment is the number of its episode and these actions: taking them up again brings any simulator back to where it
stood, without a word of its inside.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hpcopt.errors import DataError
from hpcopt.seeds import derive
from hpcopt.shapes.simulation import Ended, Layout
from hpcopt.workloads.control.simulator import LostError, Replaceable


class Episodes:
    """The ``hpcopt.shapes.simulation.Environments`` of gymnasium's.

    Attributes:
        observed: what to act on, (n, observations), float32.
    """

    def __init__(self, simulators: Replaceable, numbers: Sequence[int], layout: Layout, seed: int) -> None:
        """Begin the first episode of each.

        Args:
            simulators: of the environments of these ``numbers``.
            layout: of transitions.
            seed: that each episode's is derived from.

        Raises:
            HpcoptError: an environment fails, or is lost.
        """
        self._simulators, self._numbers, self._layout, self._seed = simulators, list(numbers), layout, seed
        count = len(numbers)
        self._indices = range(count)
        self.observed = np.empty((count, layout.observations), np.float32)
        self._episode, self._actions = [0] * count, [list[np.ndarray]() for _ in numbers]
        self._totals = [0.0] * count
        self._begin_all()

    @property
    def restarts(self) -> int:
        """How often the environments were lost and others took their place."""
        return self._simulators.restarts

    def step(self, actions: np.ndarray, rows: np.ndarray) -> list[Ended] | None:
        try:
            observed, rewards, over = self._simulators.now.step(actions, self._indices)
        except LostError as cause:
            self._begin_anew(cause)
            return None
        self._simulators.works()
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
            self._begin_anew(cause)
        return ended

    def _begin(self, index: int) -> None:
        """Begin the episode of an environment."""
        self.observed[index] = self._simulators.now.reset(index, self._seed_of(index))
        self._actions[index], self._totals[index] = [], 0.0

    def _begin_all(self) -> None:
        try:
            for index in self._indices:
                self._begin(index)
        except LostError as cause:
            self._begin_anew(cause)

    def _seed_of(self, index: int) -> int:
        return derive(self._seed, self._episode[index], self._numbers[index], "episode") % 2**31

    def _begin_anew(self, cause: LostError) -> None:
        """All environments begin new episodes; what was left of those under way is lost. HpcoptError: none do."""
        self._simulators.lose(cause)
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
            self._begin_anew(cause)

    def _take_again(self, index: int, actions: np.ndarray) -> None:
        for action in actions:
            observed, rewards, over = self._simulators.now.step(action[None], [index])
            if over.any():
                raise DataError(
                    "an environment ends an episode earlier than it did before, with the same seed and actions: it is "
                    "not reproducible, or another than the checkpoint's, or max_episode_steps is less than before; let "
                    "it be as it was, or start over with --fresh"
                )
            self.observed[index] = observed[0]
            self._actions[index].append(action.copy())
            self._totals[index] += float(rewards[0])

    def close(self) -> None:
        self._simulators.close()
