"""A learner's replay: the newest transitions, in a ring, drawn with equal probabilities."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from hpcopt.config import Choice
from hpcopt.shapes.solver import Tree
from hpcopt.solvers.actor_critic.rows import in_file, in_memory


class Drawn(NamedTuple):
    """What an update learns from.

    Attributes:
        rows: of transitions, (n, width), float32.
        places: in the ring, (n,), int64.
        weights: of the critics' squared errors, (n,), float32; None: all are 1.
        age: steps of environments since the transitions were added, a mean.
    """

    rows: Tensor
    places: Tensor
    weights: Tensor | None
    age: float


class ReplayConfig(Choice, ABC):
    """What is kept of the past, and how updates draw from it."""

    capacity: int = Field(1_000_000, ge=1, description="newest transitions that are kept, over all learners")
    folder: Path | None = Field(
        None, description="keep them in an HDF5 file in this folder, where they may be more than memory holds"
    )
    checkpoint: bool = Field(
        True, description="keep them in checkpoints; else a resumed run collects warmup transitions anew"
    )

    @abstractmethod
    def build(self, width: int, learners: int) -> "UniformReplay":
        """Make a learner's share of it, of rows of ``width`` numbers.

        Raises:
            JobError: there is no room.
        """

    def rows(self, width: int, learners: int) -> np.ndarray:
        """A learner's share of the room."""
        capacity = max(1, self.capacity // learners)
        return in_memory(capacity, width) if self.folder is None else in_file(self.folder, capacity, width)


class UniformReplayConfig(ReplayConfig):
    """Every transition is as likely as any other."""

    name: Literal["uniform"] = "uniform"

    def build(self, width: int, learners: int) -> "UniformReplay":
        return UniformReplay(self.rows(width, learners))


class UniformReplay:
    """The ring.

    Attributes:
        added: transitions so far, those that are overwritten too.
    """

    def __init__(self, rows: np.ndarray) -> None:
        self._array = rows
        self._rows = torch.from_numpy(rows)
        self.capacity, self.added = len(rows), 0

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    def add(self, rows: np.ndarray) -> None:
        """Take transitions in, (n, width), float32, in the place of the oldest ones."""
        if not len(rows):
            return
        skipped = max(0, len(rows) - self.capacity)
        places = np.arange(self.added + skipped, self.added + len(rows)) % self.capacity
        first = int(places[0])
        if first + len(places) <= self.capacity:
            self._array[first : first + len(places)] = rows[skipped:]
        else:
            self._array[places] = rows[skipped:]
        self.added += len(rows)
        self._new(places)

    def _new(self, places: np.ndarray) -> None:
        """Rows were written at these places."""

    def draw(self, count: int, generator: torch.Generator) -> Drawn:
        """Draw transitions, with replacement; there must be one."""
        places = torch.randint(len(self), (count,), generator=generator)
        return self._drawn(places, None)

    def _drawn(self, places: Tensor, weights: Tensor | None) -> Drawn:
        newest = self.added - 1
        age = float(((newest - places) % self.capacity).double().mean())
        return Drawn(self._rows.index_select(0, places), places, weights, age)

    def learned(self, places: Tensor, errors: Tensor) -> None:
        """Take note of the absolute errors, (n,), that critics made at some places."""

    def state_dict(self) -> Tree:
        """All that there is, oldest first."""
        start = self.added % self.capacity if self.added > self.capacity else 0
        rows = self._rows[: len(self)]
        return {"added": self.added, "rows": rows if not start else torch.cat([rows[start:], rows[:start]])}

    def load_state_dicts(self, states: Sequence[Any]) -> None:
        """Go on from one state, or from several one after the other."""
        self.added = max(0, sum(state["added"] - len(state["rows"]) for state in states))
        for state in states:
            self.add(state["rows"].numpy())
