"""Choices made again from what really travels: at a stated step every way that can carry a bucket carries it in turn,
beside the backward pass as ever, and what that took decides.

Times so have in them what no calibration sees: computation that slows messages down, other jobs on the links. And when
buckets became ready says what computation hides: only what lasts beyond the backward pass is waited for.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

TRIES = 3  # of each way at least: the median is right if one of them is disturbed
MOST_TRIES = 15  # where steps are short
TRIAL_S = 10.0  # what a trial may last, for more tries


@dataclass
class Trial:
    """One round of turns, the same on all ranks.

    Attributes:
        begin: its first step.
        ways: for each bucket, those that can carry it.
        tries: of each way.
    """

    begin: int
    ways: Sequence[Sequence[str]]
    tries: int = TRIES
    _since_s: float = field(default_factory=time.perf_counter)
    _seconds: dict[tuple[int, str], list[float]] = field(default_factory=dict)
    _ready_s: list[list[float]] = field(default_factory=list)

    @property
    def last(self) -> int:
        """Its last step."""
        return self.begin + self.tries * max(map(len, self.ways), default=0) - 1

    @property
    def lasted_s(self) -> float:
        """Seconds since its begin, by this rank's clock."""
        return time.perf_counter() - self._since_s

    def extend(self, lasted_s: float) -> None:
        """Plan as many tries as fit, after the first few have lasted so long on the slowest rank."""
        self.tries = max(TRIES, min(MOST_TRIES, int(TRIES * TRIAL_S / lasted_s)))

    def way(self, index: int, step: int) -> str:
        """Whose turn it is to carry a bucket."""
        ways = self.ways[index]
        return ways[(step - self.begin) % len(ways)]

    def record(self, index: int, way: str, seconds: float) -> None:
        """Note what a bucket took on this rank."""
        self._seconds.setdefault((index, way), []).append(seconds)

    def ready(self, moments_s: Sequence[float]) -> None:
        """Note when the buckets of a step were complete, by this rank's clock."""
        self._ready_s.append([moment - moments_s[0] for moment in moments_s])

    @property
    def complete(self) -> bool:
        """Whether no step of it was given up, which all ranks do alike."""
        return all(len(self._seconds.get((i, w), ())) >= self.tries for i, ways in enumerate(self.ways) for w in ways)

    def table(self) -> Tensor:
        """All that was noted, in one order on all ranks, to be reduced to the minimum over the ranks: the times of the
        rank that waited for none, and the buckets that are ready first hide least.
        """
        seconds = [t for i, ways in enumerate(self.ways) for way in ways for t in self._seconds[i, way][: self.tries]]
        return torch.tensor([*seconds, *np.median(self._ready_s, axis=0)], dtype=torch.float64)

    def measured(self, table: Tensor) -> tuple[list[dict[str, float]], list[float]]:
        """Seconds of each bucket's ways, and when buckets are ready, from a reduced ``table``."""
        times = table.tolist()
        found: list[dict[str, float]] = []
        for ways in self.ways:
            count = self.tries
            found.append({way: float(np.median(times[k * count : (k + 1) * count])) for k, way in enumerate(ways)})
            del times[: count * len(ways)]
        return found, times
