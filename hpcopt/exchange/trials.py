"""Choices made again from what really travels: at a stated step every way that can carry a bucket carries it for some
steps, beside the backward pass as ever, and what that took decides.

Times so have in them what no calibration sees: computation that slows messages down, other jobs on the links. And when
buckets became ready says what computation hides: only what lasts beyond the backward pass is waited for.

A way is measured as it will go on: behind itself. What a step leaves to the next is the way's own cost, and not that of
whichever way comes after it: a link that has rested sends its first few milliseconds at once, caches hold what was used
last, and what error feedback owes is paid where the way changes. So a way has a run of steps, whose first quarter does
not count.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

SHORTEST_RUN, LONGEST_RUN = 4, 40  # steps
RUN_S = 0.1  # that a run is to last: many times what a link gives at once
ROUNDS = 5  # where steps are short: the median is right if two of them are disturbed
TRIAL_S = 10.0  # that these may last


@dataclass
class Trial:
    """Rounds of runs, the same on all ranks: one of the shortest, and where steps are short, longer ones in its place.

    Attributes:
        begin: the first step that counts.
        ways: for each bucket, those that can carry it.
        run: steps of a way, one after the other.
        rounds: in which each way has a run.
        planned: whether it is known how long steps are.
    """

    begin: int
    ways: Sequence[Sequence[str]]
    run: int = SHORTEST_RUN
    rounds: int = 1
    planned: bool = False
    _seconds: dict[tuple[int, str], list[float]] = field(default_factory=dict)
    _ready_s: list[Sequence[float]] = field(default_factory=list)

    @property
    def last(self) -> int:
        """Its last step."""
        return self.begin + self._steps - 1

    @property
    def _steps(self) -> int:
        return self.rounds * self.run * max(map(len, self.ways))

    @property
    def _counted(self) -> int:
        """Steps of a run."""
        return self.run - self.run // 4

    @property
    def step_s(self) -> float:
        """From one step to the next by this rank's clock, the median: an evaluation may go between."""
        return float(np.median(np.diff([moments_s[0] for moments_s in self._ready_s])))

    def plan(self, step_s: float) -> None:
        """Go on with longer runs, if they fit, after a first round, whose steps took so long on the slowest rank."""
        self.planned = True
        run = min(LONGEST_RUN, max(SHORTEST_RUN, math.ceil(RUN_S / step_s)))
        rounds = min(ROUNDS, int(TRIAL_S / (step_s * run * max(map(len, self.ways)))))
        if rounds > 1:
            self.begin, self.run, self.rounds = self.last + 1, run, rounds
            self._seconds.clear()
            self._ready_s.clear()

    def way(self, index: int, step: int) -> str:
        """Whose turn it is to carry a bucket."""
        ways = self.ways[index]
        return ways[(step - self.begin) // self.run % len(ways)]

    def changes(self, step: int) -> bool:
        """Whether a run begins: buckets go another way than before."""
        return (step - self.begin) % self.run == 0

    def record(self, index: int, step: int, seconds: float) -> None:
        """Note what a bucket took on this rank."""
        if (step - self.begin) % self.run >= self.run // 4:
            self._seconds.setdefault((index, self.way(index, step)), []).append(seconds)

    def ready(self, moments_s: Sequence[float]) -> None:
        """Note when the buckets of a step were complete, by this rank's clock."""
        self._ready_s.append(moments_s)

    @property
    def complete(self) -> bool:
        """Whether no step of it was given up, which all ranks do alike."""
        count = self.rounds * self._counted
        return all(len(self._seconds.get((i, w), ())) >= count for i, ways in enumerate(self.ways) for w in ways)

    def table(self) -> Tensor:
        """The median of every run, and when buckets were ready, in one order on all ranks, to be reduced to the minimum
        over the ranks: the times of the rank that waited for none, and the buckets that are ready first hide least.
        """
        count = self.rounds * self._counted
        steps_s = [self._seconds[i, way][:count] for i, ways in enumerate(self.ways) for way in ways]
        ready_s = [[moment_s - moments_s[0] for moment_s in moments_s] for moments_s in self._ready_s]
        runs_s = np.median(np.reshape(steps_s, (-1, self._counted)), axis=1)
        return torch.from_numpy(np.concatenate([runs_s, np.median(ready_s, axis=0)]))

    def measured(self, table: Tensor) -> tuple[list[dict[str, float]], list[float]]:
        """Seconds of each bucket's ways over the rounds, and when buckets are ready, from a reduced ``table``."""
        times = table.tolist()
        found: list[dict[str, float]] = []
        for ways in self.ways:
            count = self.rounds
            found.append({way: float(np.median(times[k * count : (k + 1) * count])) for k, way in enumerate(ways)})
            del times[: count * len(ways)]
        return found, times
