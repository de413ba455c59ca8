"""From the names in a job to environments of gymnasium, wrapped, whose observations and actions are vectors."""

import importlib.util
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from pydantic import Field

from hpcopt.config import Config
from hpcopt.errors import DataError, JobError
from hpcopt.shapes.simulation import Layout
from hpcopt.workloads.own.names import Dotted
from hpcopt.workloads.own.user_code import made, theirs

VERSION = re.compile(r".*-v\d+$")


class WrapperConfig(Config):
    """A wrapper around each environment."""

    type: Dotted = Field(description='"gymnasium.wrappers:FlattenObservation", or any other: a class or function')
    arguments: dict[str, Any] = Field({}, description="keyword arguments of type, beside the environment")


class EnvironmentConfig(Config):
    """What an environment is made of."""

    environment: str = Field(
        description='as gymnasium knows it, such as "Pendulum-v1"; or "package.module:Class" of your own'
    )
    arguments: dict[str, Any] = Field({}, description="keyword arguments of the environment")
    wrappers: tuple[WrapperConfig, ...] = Field((), description="wrappers, the innermost first")


class Maker:
    """Makes environments, all alike."""

    def __init__(self, config: EnvironmentConfig) -> None:
        """Raise JobError if there is no gymnasium. Nothing is imported."""
        if importlib.util.find_spec("gymnasium") is None:
            raise JobError("environments need gymnasium: `pip install gymnasium[mujoco]`, or the extra `rl`")
        self._config = config

    def make(self, **settings: Any) -> Any:
        """A new environment; ``settings`` are further arguments of it, as ``render_mode``.

        Raises:
            JobError: it cannot be made.
        """
        config = self._config
        arguments, what = {**config.arguments, **settings}, f"[workload] environment = {config.environment!r}"
        if ":" in config.environment and not VERSION.match(config.environment):
            made_one = made(config.environment, arguments, what, JobError)
        else:
            import gymnasium

            with theirs(what, JobError):
                made_one = gymnasium.make(config.environment, disable_env_checker=True, **arguments)
        for wrapper in config.wrappers:
            name = f"[[workload.wrappers]] {wrapper.type}"
            made_one = made(wrapper.type, {"env": made_one, **wrapper.arguments}, name, JobError)
        return made_one

    @cached_property
    def layout(self) -> Layout:
        """Of transitions.

        Raises:
            JobError: observations or actions are no vectors of numbers.
        """
        from gymnasium.spaces import Box

        one = self.make()
        with theirs("the environment's close()"):
            seen, acted = one.observation_space, one.action_space
            one.close()
        if not isinstance(seen, Box):
            raise JobError(
                f"[workload] environment = {self._config.environment!r} is observed as {type(seen).__name__}, not as "
                'numbers: wrap it, as by [[workload.wrappers]] type = "gymnasium.wrappers:FlattenObservation"'
            )
        if not isinstance(acted, Box) or not (np.isfinite(acted.low).all() and np.isfinite(acted.high).all()):
            raise JobError(
                f"[workload] environment = {self._config.environment!r} takes {acted}: actions must be numbers between "
                'bounds; [[workload.wrappers]] type = "gymnasium.wrappers:RescaleAction" can give some'
            )
        return Layout(int(np.prod(seen.shape)), int(np.prod(acted.shape)))


class Here:
    """Some environments in this process; the i-th of them is reset by itself, and all are stepped together."""

    def __init__(self, maker: Maker, count: int) -> None:
        self._layout = maker.layout
        self._all = [maker.make() for _ in range(count)]
        space = self._all[0].action_space
        self._low, self._half = space.low.ravel(), (space.high.ravel() - space.low.ravel()) / 2
        self._high, self._action = space.high.ravel(), space.shape

    def __len__(self) -> int:
        return len(self._all)

    def reset(self, index: int, seed: int) -> np.ndarray:
        """Begin an episode; give what is observed, (observations,), float32."""
        with theirs("the environment's reset()"):
            observed, _ = self._all[index].reset(seed=seed)
        return self._vector(observed)

    def step(self, actions: np.ndarray, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Act in some environments by actions in [-1, 1], (n, actions).

        Returns:
            What is observed, (n, observations), float32; rewards, (n,), float64; and whether an episode was terminated
            or truncated, (n, 2).

        Raises:
            DataError: an environment fails, or gives what is not finite.
        """
        count = len(indices)
        observed = np.empty((count, self._layout.observations), np.float32)
        rewards, over = np.empty(count), np.empty((count, 2), bool)
        stretched = np.clip(self._low + (actions + 1) * self._half, self._low, self._high)
        with theirs("the environment's step()"):
            for place, index in enumerate(indices):
                one, rewards[place], terminated, truncated, _ = self._all[index].step(
                    stretched[place].reshape(self._action)
                )
                observed[place] = self._vector(one)
                over[place] = terminated, truncated
        if not (np.isfinite(rewards).all() and np.isfinite(observed).all()):
            raise DataError("an environment gave an observation or a reward that is not finite")
        return observed, rewards, over

    def close(self) -> None:
        """Let them go."""
        for one in self._all:
            one.close()

    def _vector(self, observed: Any) -> np.ndarray:
        vector = np.asarray(observed, np.float32).ravel()
        if vector.size != self._layout.observations:
            raise DataError(f"an environment gave {vector.size} numbers as an observation, not those of its space")
        return vector
