"""Data that depend on the policy: environments in which a solver acts, and the transitions that come of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import Tensor


class Transitions(NamedTuple):
    """Of n steps of environments, float32. Views of one array, see ``Layout``.

    Attributes:
        observations: acted on, (n, observations).
        actions: in [-1, 1], (n, actions).
        rewards: (n,).
        terminated: 1 where the episode is over and nothing comes after, (n,). An episode that was cut off, as by a time
            limit, has 0 here: there would have been more to gain.
        next_observations: (n, observations); at an episode's end its last.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    terminated: Tensor
    next_observations: Tensor


@dataclass(frozen=True)
class Layout:
    """Where the parts of a transition stand in a row of float32.

    >>> Layout(3, 1).width
    9
    """

    observations: int
    actions: int

    @property
    def width(self) -> int:
        """Numbers of a row."""
        return 2 * self.observations + self.actions + 2

    def read(self, rows: Tensor) -> Transitions:
        """The parts of rows, (n, width)."""
        seen, acted = self.observations, self.observations + self.actions
        return Transitions(
            rows[:, :seen], rows[:, seen:acted], rows[:, acted], rows[:, acted + 1], rows[:, acted + 2 :]
        )

    def write(
        self,
        rows: np.ndarray,
        observations: np.ndarray,
        actions: np.ndarray,
        rewards: np.ndarray,
        terminated: np.ndarray,
        next_observations: np.ndarray,
    ) -> None:
        """Fill rows, (n, width)."""
        seen, acted = self.observations, self.observations + self.actions
        rows[:, :seen], rows[:, seen:acted] = observations, actions
        rows[:, acted], rows[:, acted + 1], rows[:, acted + 2 :] = rewards, terminated, next_observations


class Ended(NamedTuple):
    """An episode that came to its end.

    Attributes:
        total: the sum of its rewards.
        steps: of the environment.
    """

    total: float
    steps: int


class Environments(Protocol):
    """Some environments, stepped together. An episode that ends is followed by another.

    Attributes:
        observed: what to act on, (n, observations), float32.
    """

    observed: np.ndarray

    @property
    def restarts(self) -> int:
        """How often the environments were lost and others took their place."""

    def step(self, actions: np.ndarray, rows: np.ndarray) -> list[Ended] | None:
        """Act once in each environment; give the episodes that ended.

        Args:
            actions: in [-1, 1], (n, actions), float32.
            rows: filled with the transitions, (n, ``Layout.width``), float32.

        Returns:
            None if the environments were lost in this step and made anew: there are no transitions, and ``observed`` is
            of new episodes.
        """

    def state_dict(self) -> dict[str, Any]:
        """Where each environment stands, by its number as text."""

    def load_state_dict(self, states: Mapping[str, Any]) -> None:
        """Go on where environments stood; those of other numbers are left out."""

    def close(self) -> None:
        """Let the environments go."""


@dataclass(frozen=True)
class Simulation:
    """Environments that can be acted in.

    Attributes:
        count: of them, over all ranks.
        batch: steps of environments in a step of the run, over all of them; a multiple of ``count``.
        layout: of transitions.
        make: makes those of some numbers below ``count``.
    """

    count: int
    batch: int
    layout: Layout
    make: Callable[[Sequence[int]], Environments]
