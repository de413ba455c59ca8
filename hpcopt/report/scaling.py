"""How runs that differ only in their number of ranks scale: strong (the same global batch) and weak (the same batch a
rank).

With T(p) the step time at p ranks and p0 the fewest ranks of a series, which need not be 1:

    strong speed-up   S = T(p0) / T(p)
    efficiency        strong p0 T(p0) / (p T(p)), weak T(p0) / T(p)
    Karp-Flatt        e = (1/S - 1/q) / (1 - 1/q) with q = p / p0: the serial fraction that would explain S
                      (Karp and Flatt 1990, doi:10.1145/78607.78614); rising with p, it is overhead that grows
"""

import json
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from hpcopt.report.read import Run
from hpcopt.report.summary import Runs, flat


@dataclass(frozen=True)
class Point:
    """One number of ranks: the median step time over repeats, with the fastest and the slowest repeat.

    Attributes:
        karp_flatt: None at p0 and for weak scaling.
    """

    ranks: int
    repeats: int
    step_s: float
    low_s: float
    high_s: float
    speedup: float
    efficiency: float
    karp_flatt: float | None


@dataclass(frozen=True)
class Series:
    """Runs that differ in ranks and seed only, by rising ranks; at least two numbers of ranks."""

    kind: str  # "strong" or "weak"
    name: str
    points: tuple[Point, ...]


def series_of(runs: Runs) -> list[Series]:
    """All series among the runs, leaving out those without steps and those whose times do not show scaling."""
    groups: dict[tuple[str, str, float], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run, summary in runs:
        if summary.labels or not np.isfinite(summary.step_s):
            continue
        batch = run.config.get("workload", {}).get("batch", 0)
        for kind, size in (("strong", batch), ("weak", batch / run.ranks)):
            groups[kind, _settings(run), size][run.ranks].append(summary.step_s)
    found = {key: times for key, times in groups.items() if len(times) > 1}
    several = len({settings for _, settings, _ in found}) > 1
    return [
        Series(kind, _name(kind, size, settings if several else "", [s for _, s, _ in found]), _points(kind, times))
        for (kind, settings, size), times in found.items()
    ]


def _settings(run: Run) -> str:
    """The job but for what may differ inside a series."""
    config = json.loads(json.dumps(run.config))
    for section, key in (("run", "name"), ("run", "seed"), ("workload", "batch")):
        config.get(section, {}).pop(key, None)
    return json.dumps(config, sort_keys=True)


def _name(kind: str, size: float, settings: str, all_settings: list[str]) -> str:
    """A short name: the batch, and the settings in which the series differ."""
    batch = f"batch {size:g}" if kind == "strong" else f"batch {size:g} a rank"
    if not settings:
        return batch
    others = [flat(json.loads(s)) for s in all_settings]
    mine = flat(json.loads(settings))
    differing = [value for key, value in mine.items() if len({other.get(key) for other in others}) > 1]
    return ", ".join([*differing, batch])


def _points(kind: str, times: dict[int, list[float]]) -> tuple[Point, ...]:
    fewest = min(times)
    base_s = float(np.median(times[fewest]))
    points = []
    for ranks in sorted(times):
        step_s, q = float(np.median(times[ranks])), ranks / fewest
        ratio = base_s / step_s
        strong = kind == "strong"
        karp_flatt = (1 / ratio - 1 / q) / (1 - 1 / q) if strong and ranks > fewest else None
        points.append(
            Point(
                ranks=ranks,
                repeats=len(times[ranks]),
                step_s=step_s,
                low_s=min(times[ranks]),
                high_s=max(times[ranks]),
                speedup=ratio if strong else ratio * q,
                efficiency=ratio / q if strong else ratio,
                karp_flatt=karp_flatt,
            )
        )
    return tuple(points)
