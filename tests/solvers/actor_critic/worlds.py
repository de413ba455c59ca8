"""Small environments whose every number can be foretold. Imports little: processes of environments do it."""

import os
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete, Text


class Track(gymnasium.Env):
    """A point on a line, pushed left or right; it falls off at 2, and time is up after 7 steps."""

    observation_space = Box(-np.inf, np.inf, (2,), np.float64)
    action_space = Box(-2.0, 2.0, (1,), np.float32)

    def __init__(self, end: float = 2.0, limit: int = 7) -> None:
        self._end, self._limit = end, limit

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._at, self._steps = float(self.np_random.uniform(-0.5, 0.5)), 0
        return self._seen(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._at += 0.5 * float(action[0])
        self._steps += 1
        return self._seen(), -self._at * self._at, abs(self._at) > self._end, self._steps >= self._limit, {}

    def _seen(self) -> np.ndarray:
        return np.array([self._at, self._steps / 7])


class Odd(Track):
    """Gives what no agent can learn from."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self._kind = kind
        if kind == "words":
            self.observation_space = Text(3)
        if kind == "buttons":
            self.action_space = Discrete(3)
        if kind == "idle":
            self.action_space = Box(-1.0, 1.0, (0,), np.float32)
        if kind == "spaceless":
            self.action_space = None
        if kind == "boundless":
            self.action_space = Box(-np.inf, np.inf, (1,), np.float32)
        if kind == "whole numbers":
            self.action_space = Box(0, 5, (1,), np.int64)
        if kind == "several":
            self.num_envs = 4

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        if self._kind == "dies":
            os._exit(7)
        seen, info = super().reset(seed=seed)
        if self._kind == "older":
            return seen
        return (seen * np.nan if self._kind == "blind" else seen), info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        seen, reward, *rest = super().step(action)
        if self._kind == "raises":
            raise RuntimeError("out of fuel")
        if self._kind == "old":
            return seen, reward, any(rest[:2]), {}
        if self._kind == "endless":
            return seen, reward, False, False, {}
        return (seen[:1] if self._kind == "short" else seen), (np.nan if self._kind == "nan" else reward), *rest


class Drawn(Track):
    """Draws itself: the number of the step is the shade of red."""

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__()
        self.render_mode = render_mode

    def render(self) -> np.ndarray:
        picture = np.zeros((4, 6, 3), np.uint8)
        picture[..., 0] = self._steps
        return picture
