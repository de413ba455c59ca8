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
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hpcopt.report.read import Run
from hpcopt.report.summary import Runs, flat


@dataclass(frozen=True)
class Point:
    """One number of ranks: the median step time over repeats, with the fastest and the slowest repeat.

    Attributes:
        karp_flatt: None at p0, for weak scaling, and where more ranks are slower, which no serial fraction explains.
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
    for (run, summary), name in zip(runs, series_names([run for run, _ in runs]), strict=True):
        if summary.labels or not np.isfinite(summary.step_s):
            continue
        batch = run.config.get("workload", {}).get("batch", 0)
        for kind, size in (("strong", batch), ("weak", batch / run.ranks)):
            groups[kind, name, size][run.ranks].append(summary.step_s)
    found = {key: times for key, times in groups.items() if len(times) > 1}
    several = len({name for _, name, _ in found}) > 1
    return [
        Series(kind, (f"{name}, " if several else "") + _batch(kind, size), _points(kind, times))
        for (kind, name, size), times in found.items()
    ]


def series_names(runs: Sequence[Run]) -> list[str]:
    """A name for each run, shared by those that differ in ranks, batch and seed only: the job's name if that tells them
    apart, else the settings in which they differ.
    """
    settings = [_settings(run) for run in runs]
    titles: dict[str, list[str]] = defaultdict(list)
    for run, own in zip(runs, settings, strict=True):
        titles[own] = list(dict.fromkeys([*titles[own], run.name]))
    names = {own: its[0] for own, its in titles.items()}
    if any(len(its) > 1 for its in titles.values()) or len(set(names.values())) < len(names):
        every = {own: flat(json.loads(own)) for own in titles}
        keys = dict.fromkeys(key for each in every.values() for key in each)
        differing = [key for key in keys if len({each.get(key) for each in every.values()}) > 1]
        for own, each in every.items():
            names[own] = ", ".join(each[key] for key in differing if key in each) or names[own]
    return [names[own] for own in settings]


def _settings(run: Run) -> str:
    """The job but for what may differ inside a series."""
    config = json.loads(json.dumps(run.config))
    for section, key in (("run", "name"), ("run", "seed"), ("workload", "batch")):
        config.get(section, {}).pop(key, None)
    return json.dumps(config, sort_keys=True)


def _batch(kind: str, size: float) -> str:
    return f"batch {size:g}" if kind == "strong" else f"batch {size:g} a rank"


def _points(kind: str, times: dict[int, list[float]]) -> tuple[Point, ...]:
    fewest = min(times)
    base_s = float(np.median(times[fewest]))
    points = []
    for ranks in sorted(times):
        step_s, q = float(np.median(times[ranks])), ranks / fewest
        ratio = base_s / step_s
        strong = kind == "strong"
        karp_flatt = (1 / ratio - 1 / q) / (1 - 1 / q) if strong and ranks > fewest and ratio >= 1 else None
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
