"""What a job says of an environment, and what it is like."""

import importlib.util
from functools import cached_property
from typing import Any

import numpy as np
from pydantic import Field

from hpcopt.config import Config
from hpcopt.errors import JobError
from hpcopt.shapes.simulation import Layout
from hpcopt.workloads.control.here import Here, Wrapper, make_environment
from hpcopt.workloads.own.names import Dotted
from hpcopt.workloads.own.theirs import theirs


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
    max_episode_steps: int = Field(
        10_000, ge=1, description="an episode that has not ended before is truncated then, as by a time limit"
    )


class Maker:
    """Makes environments, all alike.

    Attributes:
        name, arguments, wrappers: as ``make_environment`` takes them.
        max_episode_steps: of an episode at most.
    """

    def __init__(self, config: EnvironmentConfig) -> None:
        """Raise JobError if there is no gymnasium. Nothing is imported."""
        if importlib.util.find_spec("gymnasium") is None:
            raise JobError("environments need gymnasium: `pip install gymnasium[mujoco]`, or the extra `rl`")
        self.name, self.arguments = config.environment, config.arguments
        self.max_episode_steps = config.max_episode_steps
        self.wrappers: list[Wrapper] = [(wrapper.type, wrapper.arguments) for wrapper in config.wrappers]

    def make(self, **settings: Any) -> Any:
        """A new environment; ``settings`` are further arguments of it, as ``render_mode``.

        Raises:
            JobError: it cannot be made.
        """
        return make_environment(self.name, {**self.arguments, **settings}, self.wrappers)

    def here(self, count: int) -> Here:
        """So many, in this process."""
        return Here([self.make() for _ in range(count)], self.layout.observations, self.max_episode_steps)

    @cached_property
    def layout(self) -> Layout:
        """Of transitions.

        Raises:
            JobError: observations or actions are no vectors of numbers.
        """
        from gymnasium.spaces import Box

        one = self.make()
        with theirs(f"[workload] environment = {self.name!r}, asked for its spaces,", JobError):
            several = getattr(one, "num_envs", None)
            seen, acted = one.observation_space, one.action_space
            one.close()
        if several is not None:
            raise JobError(
                f"[workload] environment = {self.name!r} is a vector of {several} environments: name that of one; "
                "environments = 4 makes four of it, which are stepped together"
            )
        if not isinstance(seen, Box):
            raise JobError(
                f"[workload] environment = {self.name!r} is observed as {type(seen).__name__}, not as numbers: wrap "
                'it, as by [[workload.wrappers]] type = "gymnasium.wrappers:FlattenObservation"'
            )
        real = isinstance(acted, Box) and np.issubdtype(acted.dtype, np.floating)
        if not real or not (np.isfinite(acted.low).all() and np.isfinite(acted.high).all()):
            hint = "a wrapper of your own, by [[workload.wrappers]], whose action_space is such a Box, can give them"
            raise JobError(
                f"[workload] environment = {self.name!r} takes {acted}: actions must be numbers between bounds, a Box "
                f"of floats; {hint if real else 'SAC and TD3 do not choose among discrete actions'}"
            )
        layout = Layout(int(np.prod(seen.shape)), int(np.prod(acted.shape)))
        if not (layout.observations and layout.actions):
            raise JobError(
                f"[workload] environment = {self.name!r} has {layout.observations} numbers as an observation and "
                f"{layout.actions} as an action: there must be one of each at least"
            )
        return layout
