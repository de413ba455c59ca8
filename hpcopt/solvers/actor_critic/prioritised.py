"""Prioritised replay: transitions that critics were wrong about come more often (Schaul et al. 2016, arXiv:1511.05952).

Proportional form: ``P(i) = p_i^alpha / sum_j p_j^alpha`` with ``p_i = |error| + eps``, the largest so far for what is
new. Its bias is taken back by weights ``w_i = (N P(i))^-beta``, over the largest of the draw.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from hpcopt.shapes.solver import Tree
from hpcopt.solvers.actor_critic.replay import Drawn, ReplayConfig, UniformReplay
from hpcopt.solvers.actor_critic.sum_tree import SumTree

EPS = 1e-6  # without which what was learned once would never come again


class PrioritisedReplayConfig(ReplayConfig):
    """Transitions with larger errors of the critics come more often."""

    name: Literal["prioritised"] = "prioritised"
    alpha: float = Field(0.6, ge=0, le=1, description="0: all are as likely, 1: in proportion to the error")
    beta: float = Field(0.4, ge=0, le=1, description="of what the weights take back of the bias, 1: all of it")

    def build(self, width: int, learners: int) -> "PrioritisedReplay":
        return PrioritisedReplay(self.rows(width, learners), self.alpha, self.beta)


class PrioritisedReplay(UniformReplay):
    """The ring, and a tree of priorities."""

    def __init__(self, rows: np.ndarray, alpha: float, beta: float) -> None:
        super().__init__(rows)
        self._alpha, self._beta = alpha, beta
        self._tree, self._largest = SumTree(len(rows)), 1.0

    def _new(self, places: np.ndarray) -> None:
        self._tree[places] = self._largest

    def draw(self, count: int, generator: torch.Generator) -> Drawn:
        """One of each of ``count`` strata of equal mass."""
        uniform = torch.rand(count, generator=generator, dtype=torch.float64).numpy()
        total = self._tree.total
        masses = np.minimum((np.arange(count) + uniform) * (total / count), np.nextafter(total, 0))
        places = self._tree.find(masses)
        weights = (self._tree[places] * (len(self) / total)) ** -self._beta
        return self._drawn(torch.from_numpy(places), torch.from_numpy(weights / weights.max()).float())

    def learned(self, places: Tensor, errors: Tensor) -> None:
        priorities = (errors.double().cpu().numpy() + EPS) ** self._alpha
        self._tree[places.numpy()] = priorities
        self._largest = max(self._largest, float(priorities.max()))

    def state_dict(self) -> Tree:
        first = max(0, self.added - self.capacity)
        priorities = self._tree[np.arange(first, self.added) % self.capacity]
        return {**super().state_dict(), "priorities": priorities, "largest": self._largest}

    def load_state_dicts(self, states: Sequence[Any]) -> None:
        super().load_state_dicts(states)
        priorities = np.concatenate([np.asarray(state["priorities"]) for state in states])[-self.capacity :]
        first = self.added - len(priorities)
        self._tree[np.arange(first, self.added) % self.capacity] = priorities
        self._largest = max(state["largest"] for state in states)
