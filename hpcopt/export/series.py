"""What a run measured, as other programs take it: a series of points a number, each at a step and a moment."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from hpcopt.report.read import NO_SCORES, Run

UNITS = {"sent_bytes": "By", "dense_bytes": "By", "step_s": "s", "samples": "{sample}", "energy_j": "J"}


@dataclass(frozen=True)
class Series:
    """One number of a run.

    Attributes:
        name: such as ``train/loss``, ``evaluation/test_accuracy``, ``phase/forward``, ``wire/sent_bytes``.
        unit: of UCUM, as OpenTelemetry has them.
        steps: rising, (k,), int64.
        times_s: seconds since 1970, (k,).
        values: finite, (k,), float64.
    """

    name: str
    unit: str
    steps: np.ndarray
    times_s: np.ndarray
    values: np.ndarray

    def after(self, step: int, last: int) -> "Series":
        """The points of later steps than one, up to another."""
        rows = (self.steps > step) & (self.steps <= last)
        return Series(self.name, self.unit, self.steps[rows], self.times_s[rows], self.values[rows])


def series_of(run: Run) -> list[Series]:
    """All numbers of a run: of its steps, means or sums over the ranks, and of its evaluations. What was not measured
    has no point.
    """
    found = [_series(run, run.columns, *named) for named in _of_steps(run)]
    scores = {name: values for name, values in run.evaluations.items() if name not in NO_SCORES}
    found += [_series(run, run.evaluations, f"evaluation/{name}", "1", values) for name, values in scores.items()]
    return [series for series in found if len(series.steps)]


def closed_step(run: Run) -> int:
    """The newest step that nothing is added to any more: an evaluation after the last one may still be under way."""
    steps = run.columns["step"]
    rows = len(steps) if "outcome" in run.attributes else len(steps) - 1
    return int(steps[rows - 1]) if rows > 0 else 0


def by_step(series: list[Series]) -> Iterator[tuple[int, float, dict[str, float]]]:
    """Step, seconds since 1970 and the values by name of each step that has any, in order."""
    rows: dict[int, tuple[float, dict[str, float]]] = {}
    for each in series:
        for step, time_s, value in zip(each.steps.tolist(), each.times_s.tolist(), each.values.tolist(), strict=True):
            rows.setdefault(step, (time_s, {}))[1][each.name] = value
    for step in sorted(rows):
        yield step, *rows[step]


def _of_steps(run: Run) -> Iterator[tuple[str, str, np.ndarray]]:
    for name, values in run.columns.items():
        if name not in (*NO_SCORES, "epoch"):
            yield f"train/{name}", UNITS.get(name, "1"), values
    for index, phase in enumerate(run.phases):
        if run.phase_s[:, index].any():
            yield f"phase/{phase}", "s", run.phase_s[:, index]
    for name in ("sent_bytes", "dense_bytes"):
        yield f"wire/{name}", UNITS[name], getattr(run, name)


def _series(run: Run, table: dict[str, np.ndarray], name: str, unit: str, values: np.ndarray) -> Series:
    rows = np.isfinite(values)
    steps, time_s = table["step"][rows], table.get("time_s", np.full(len(values), np.nan))[rows]
    return Series(name, unit, steps, moments(run, steps, time_s), values[rows].astype(float))


def moments(run: Run, steps: np.ndarray, time_s: np.ndarray) -> np.ndarray:
    """Seconds since 1970 at which a run was so many seconds old: a requeue's wait is no part of its age.

    Args:
        steps: done by then, (k,); they tell by which start.
        time_s: seconds of the run, (k,); where they are not known, the start's.
    """
    starts = np.array([start.step for start in run.starts])
    begun_s = np.array([datetime.fromisoformat(start.date).timestamp() for start in run.starts])
    before_s = np.array([start.time_s for start in run.starts])
    start = np.maximum(np.searchsorted(starts, steps, side="left") - 1, 0)
    moments_s: np.ndarray = begun_s[start] + np.nan_to_num(time_s - before_s[start])
    return moments_s
