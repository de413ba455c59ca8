"""What a run took to reach a score: steps, seconds and bytes, up to the first evaluation that had it."""

import math
from dataclasses import dataclass

import numpy as np

from hpcopt.report.read import Run


@dataclass(frozen=True)
class Target:
    """A score and its value."""

    score: str
    value: float

    def __str__(self) -> str:
        return f"{self.score}={self.value:g}"


@dataclass(frozen=True)
class Reached:
    """What it took; NaN if it was not reached. Bytes are those of all ranks."""

    target: str
    step: float = math.nan
    time_s: float = math.nan
    sent_bytes: float = math.nan


def target_of(run: Run) -> Target | None:
    """The one that the job itself has, if any."""
    stop_at = run.config.get("run", {}).get("stop_at")
    if not isinstance(stop_at, dict) or not isinstance(stop_at.get("value"), int | float):
        return None
    return Target(str(stop_at.get("metric")), float(stop_at["value"]))


def reached(run: Run, target: Target) -> Reached:
    """What a run took to reach a target, by the score's own direction."""
    if target.score not in run.evaluations:
        return Reached(str(target))
    values = run.evaluations[target.score]
    there = np.flatnonzero(values <= target.value if run.better[target.score] == "lower" else values >= target.value)
    if not len(there):
        return Reached(str(target))
    step, time_s = (float(run.evaluations[name][there[0]]) for name in ("step", "time_s"))
    return Reached(str(target), step, time_s, float(run.sent_bytes[run.columns["step"] <= step].sum()))
