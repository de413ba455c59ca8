"""A collector: it acts in its environments by a policy of some version, and hands on what came of it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from hpcopt.models.control.agent import Policy
from hpcopt.models.control.features import Features
from hpcopt.phases import PhaseClock
from hpcopt.seeds import derive
from hpcopt.shapes.simulation import Ended, Simulation
from hpcopt.shapes.solver import Tree
from hpcopt.solvers.actor_critic.method import Method


class Chunk(NamedTuple):
    """What a collector made in a step of the run.

    Attributes:
        rows: transitions, (rounds, environments, width), float32.
        version: of the policy: the step of the run after which it was sent.
        ended: episodes.
        restarts: of its environments so far.
    """

    rows: np.ndarray
    version: int
    ended: list[Ended]
    restarts: int


class Collector:
    """Some of the environments. Environment e explores by random numbers of its own, whoever runs it.

    Attributes:
        version: of the policy that it acts by.
    """

    def __init__(
        self,
        acting: tuple[Features, Policy],
        method: Method,
        simulation: Simulation,
        numbers: Sequence[int],
        *,
        seed: int,
        warmup: int,
        clock: PhaseClock,
    ) -> None:
        """Open the environments.

        Args:
            acting: features and policy.
            method: explores.
            simulation: all environments.
            numbers: of this collector's.
            seed: of what is drawn.
            warmup: steps of environments, over all, in which actions are drawn evenly.
            clock: counts what this takes as "data".
        """
        self._features, self._policy = acting
        self._method, self._simulation, self._numbers, self._warmup = method, simulation, list(numbers), warmup
        self._environments = simulation.make(numbers)
        self._draws = [np.random.default_rng(derive(seed, 0, number, "exploration")) for number in numbers]
        self._clock, self.version = clock, 0
        self._device = next(acting[1].parameters()).device

    def collect(self, before: int) -> Chunk:
        """Act in a step of the run, ``before`` which environments, over all, made so many steps."""
        simulation, count = self._simulation, len(self._numbers)
        rounds = simulation.batch // simulation.count
        rows = np.empty((rounds, count, simulation.layout.width), np.float32)
        ended, made = list[Ended](), 0
        with self._clock("data"), torch.no_grad():
            while made < rounds:
                drawn = before + made * simulation.count < self._warmup
                actions = self._drawn() if drawn else self._chosen()
                over = self._environments.step(actions, rows[made])
                if over is not None:  # or they were lost, and nothing came of it
                    ended += over
                    made += 1
        return Chunk(rows, self.version, ended, self._environments.restarts)

    def _drawn(self) -> np.ndarray:
        actions = self._simulation.layout.actions
        return np.stack([draw.uniform(-1, 1, actions) for draw in self._draws]).astype(np.float32)

    def _chosen(self) -> np.ndarray:
        actions = self._simulation.layout.actions
        noise = np.stack([draw.standard_normal(actions, np.float32) for draw in self._draws])
        observed, drawn = (torch.from_numpy(x).to(self._device) for x in (self._environments.observed, noise))
        chosen: np.ndarray = self._method.explore(self._policy, self._features.observe(observed), drawn).cpu().numpy()
        return chosen

    def state_dict(self) -> Tree:
        """Where environments and random numbers stand."""
        draws = {str(n): draw.bit_generator.state for n, draw in zip(self._numbers, self._draws, strict=True)}
        return {"environments": self._environments.state_dict(), "draws": draws}

    def load_state_dicts(self, states: Sequence[Any]) -> None:
        """Go on from those of all collectors that saved, whichever had which environment."""
        environments = {number: one for state in states for number, one in state["environments"].items()}
        draws = {number: one for state in states for number, one in state["draws"].items()}
        for number, draw in zip(self._numbers, self._draws, strict=True):
            if str(number) in draws:
                draw.bit_generator.state = draws[str(number)]
        self._environments.load_state_dict(environments)

    def close(self) -> None:
        """Let the environments go."""
        self._environments.close()
