"""How long a round is, where the links decide: as few steps as keep what ranks wait for below a share of the time.

The first rounds are of one step each. From the times of all but the first, in which loops are loaded,

    every = ceil(exchange_s (1 - share) / (share step_s)),

with the exchange of the rank that waited for none, and the slowest rank's steps. All ranks so come to one length, which
a checkpoint keeps.
"""

import math
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch

from hpcopt.comm.world import World

ROUNDS = 4  # of one step, before the length is chosen


@dataclass
class Pace:
    """Measures, then knows.

    Attributes:
        share: of the time, that ranks may wait.
        most: steps of a round.
        every: what was chosen; 0 before.
    """

    share: float
    most: int
    every: int = 0
    step_s: float = math.nan
    exchange_s: float = math.nan

    def __post_init__(self) -> None:
        self._steps: list[float] = []
        self._exchanges: list[float] = []
        self._left_s: float | None = None

    @property
    def length(self) -> int:
        """Steps of the round that begins now."""
        return self.every or 1

    def enter(self) -> None:
        """A step was taken, and its round's exchange begins."""
        now_s = time.perf_counter()
        if not self.every and self._left_s is not None:
            self._steps.append(now_s - self._left_s)
        self._entered_s = now_s

    def leave(self, world: World) -> bool:
        """The exchange is over. Collective, while nothing is chosen.

        Returns:
            Whether the length was chosen now.
        """
        self._left_s = time.perf_counter()
        if self.every:
            return False
        self._exchanges.append(self._left_s - self._entered_s)
        if len(self._exchanges) < ROUNDS:
            return False
        times_s = [statistics.median(self._exchanges[1:]), -statistics.median(self._steps)]
        self.exchange_s, minus_s = world.all_reduce(torch.tensor(times_s, dtype=torch.float64), "min").tolist()
        self.step_s = -minus_s
        self.every = steps_of_a_round(self.share, self.exchange_s, self.step_s, self.most)
        return True

    def state_dict(self) -> dict[str, Any]:
        """What was chosen, and by what."""
        return {"every": self.every, "step_s": self.step_s, "exchange_s": self.exchange_s}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep what was chosen."""
        self.every, self.step_s, self.exchange_s = state["every"], state["step_s"], state["exchange_s"]


def steps_of_a_round(share: float, exchange_s: float, step_s: float, most: int) -> int:
    """The fewest with which an exchange takes at most a share of the time, but no more than ``most``.

    >>> steps_of_a_round(0.1, exchange_s=0.1, step_s=0.03, most=64)
    30
    """
    needed = exchange_s * (1 - share) / (share * max(step_s, 1e-9))
    return max(1, min(most, math.ceil(needed - 1e-9)))
