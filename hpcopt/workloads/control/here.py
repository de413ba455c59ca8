"""Environments of gymnasium in this process. Imports no torch: a process of environments is small and begins soon."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hpcopt.errors import DataError, JobError
from hpcopt.plugins import import_object
from hpcopt.workloads.own.theirs import theirs

VERSION = re.compile(r".*-v\d+$")
Wrapper = tuple[str, Mapping[str, Any]]  # a dotted name, and arguments
OF_RESET = "observation", "info"
OF_STEP = "observation", "reward", "terminated", "truncated", "info"


def make_environment(name: str, arguments: Mapping[str, Any], wrappers: Sequence[Wrapper]) -> Any:
    """A new environment, wrapped.

    Args:
        name: that gymnasium knows, or "package.module:Class".
        arguments: of the environment.
        wrappers: the innermost first.

    Raises:
        JobError: it cannot be made.
    """
    with theirs(f"[workload] environment = {name!r}", JobError):
        if ":" in name and not VERSION.match(name):
            made = import_object(name)(**arguments)
        else:
            import gymnasium

            made = gymnasium.make(name, disable_env_checker=True, **arguments)
    for wrapper, settings in wrappers:
        with theirs(f"[[workload.wrappers]] {wrapper}", JobError):
            made = import_object(wrapper)(made, **settings)
    return made


class Here:
    """Some environments in this process; the i-th of them is reset by itself, and all are stepped together."""

    def __init__(self, environments: Sequence[Any], observations: int, max_episode_steps: int) -> None:
        """``observations`` are the numbers that an environment gives; it is truncated after so many steps, if it does
        not end an episode before.
        """
        self._all, self._observations, self._longest = environments, observations, max_episode_steps
        self._steps = [0] * len(environments)
        space = environments[0].action_space
        self._low, self._half = space.low.ravel(), (space.high.ravel() - space.low.ravel()) / 2
        self._high, self._action = space.high.ravel(), space.shape

    def __len__(self) -> int:
        return len(self._all)

    def reset(self, index: int, seed: int) -> np.ndarray:
        """Begin an episode; give what is observed, (observations,), float32."""
        with theirs("the environment's reset()"):
            observed, _ = values(self._all[index].reset(seed=seed), OF_RESET)
            vector = self._vector(observed)
        self._steps[index] = 0
        return finite(vector)

    def step(self, actions: np.ndarray, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Act in some environments by actions in [-1, 1], (n, actions).

        Returns:
            What is observed, (n, observations), float32; rewards, (n,), float64; and whether an episode was terminated
            or truncated, (n, 2).

        Raises:
            DataError: an environment fails, or gives what is not finite.
        """
        count = len(indices)
        observed = np.empty((count, self._observations), np.float32)
        rewards, over = np.empty(count), np.empty((count, 2), bool)
        stretched = np.clip(self._low + (actions + 1) * self._half, self._low, self._high)
        with theirs("the environment's step()"):
            for place, index in enumerate(indices):
                action = stretched[place].reshape(self._action)
                one, rewards[place], terminated, truncated, _ = values(self._all[index].step(action), OF_STEP)
                observed[place] = self._vector(one)
                self._steps[index] += 1
                over[place] = terminated, truncated or self._steps[index] >= self._longest
        return finite(observed), finite(rewards), over

    def close(self) -> None:
        """Let them go."""
        with theirs("the environment's close()"):
            for one in self._all:
                one.close()

    def _vector(self, observed: Any) -> np.ndarray:
        vector = np.asarray(observed, np.float32).ravel()
        if vector.size != self._observations:
            raise DataError(f"an environment gave {vector.size} numbers as an observation, not those of its space")
        return vector


def values(given: Any, names: Sequence[str]) -> Any:
    """What a call of an environment gave; DataError if it is not as many values as gymnasium has."""
    if isinstance(given, tuple) and len(given) == len(names):
        return given
    what = f"{len(given)} values" if isinstance(given, tuple) else f"one {type(given).__name__}"
    raise DataError(
        f"an environment gave {what}, where gymnasium has {len(names)}, {', '.join(names)}: one of the older gym needs "
        "a wrapper that gives these"
    )


def finite(numbers: np.ndarray) -> np.ndarray:
    """Observations or rewards as they are; DataError if one is not finite."""
    if not np.isfinite(numbers).all():
        raise DataError("an environment gave an observation or a reward that is not finite")
    return numbers
