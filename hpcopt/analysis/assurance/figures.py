"""What the page of a case draws."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcopt.analysis.assurance import worst_case
from hpcopt.analysis.assurance.case import Case
from hpcopt.analysis.assurance.next_demands import survival
from hpcopt.report.figure import GREY, Figure, colour, log_axis, plain

POINTS, SURVIVAL_POINTS = 400, 60

Counts = NDArray[np.int64]
Rule = Callable[[Counts, Counts], NDArray[np.float64]]


def figures_of(case: Case) -> list[Figure]:
    """Confidence as the demands came, survival of the next ones, and the classes, where they are known."""
    found = [confidence_figure(case), survival_figure(case)]
    return [*found, classes_figure(case)] if case.observed.classes else found


def confidence_figure(case: Case) -> Figure:
    """Worst case and uniform prior after each demand so far, and on as if no more failed."""
    seen, asked = case.observed, case.question
    trail = np.zeros(0, bool) if seen.trail is None else seen.trail
    n = np.unique(np.linspace(0, len(trail), POINTS).astype(np.int64))
    k = np.concatenate([[0], np.cumsum(trail)])[n]
    ahead = _ahead(case)
    rules: dict[str, Rule] = {
        "worst case": lambda k, n: worst_case.confidence(case.ground.prior, asked.bound, k, n),
        "uniform prior, for comparison": lambda k, n: worst_case.uniform_confidence(asked.bound, k, n),
    }
    data: list[dict[str, Any]] = []
    table: dict[str, list[Any]] = {"demands": [*n.tolist(), *ahead.tolist()]}
    for index, (name, rule) in enumerate(rules.items()):
        so_far, then = plain(rule(k, n)), plain(rule(np.full(len(ahead), seen.failures), ahead))
        line = {"color": colour(index)}
        data.append({"name": name, "x": n.tolist(), "y": so_far, "mode": "lines", "line": line})
        dotted = {"showlegend": False, "mode": "lines", "line": {**line, "dash": "dot"}}
        data.append({"name": f"{name}, if no more fails", "x": ahead.tolist(), "y": then, **dotted})
        table[name] = [*so_far, *then]
    definition = (
        f"Confidence in at most {asked.bound:g} failures a demand, after each demand; {seen.failures:,} of "
        f"{seen.demands:,} failed; dotted: no more fail. It is {case.confidence:.4g}; {asked.confidence:g} is wanted."
    )
    layout = {**_axes("demands", "confidence"), "shapes": [_level(asked.confidence)]}
    return Figure("confidence", "Confidence in the bound", definition, data, layout, table)


def survival_figure(case: Case) -> Figure:
    """The worst-case chance that the next demands all succeed, by how many they are."""
    seen, prior = case.observed, case.ground.prior
    farthest = max(s.demands for s in case.survival) * 10
    ahead = np.unique(np.geomspace(1, farthest, SURVIVAL_POINTS).astype(np.int64)).tolist()
    values = [survival(prior, t, seen.failures, seen.demands).value for t in ahead]
    told = "; ".join(f"{s.demands:,}: {s.value:.4g}" for s in case.survival)
    definition = f"Worst-case probability that the next demands all succeed, by their number. {told}."
    data = [{"name": "worst case", "x": ahead, "y": values, "mode": "lines", "line": {"color": colour(0)}}]
    layout = _axes("next demands", "probability that all succeed")
    layout["xaxis"] = log_axis("next demands", ahead)
    return Figure("survival", "The next demands", definition, data, layout, {"demands": ahead, "survival": values})


def classes_figure(case: Case) -> Figure:
    """Shares of the classes in operation, beside those of the profile, or of the test samples."""
    seen, ground = case.observed.classes, case.ground
    expected = ground.profile or (ground.weighing.samples.shares if ground.weighing else {})
    names = list(dict.fromkeys([*expected, *seen]))
    total = sum(seen.values())
    shares = {
        "operational profile" if ground.profile else "test samples": [expected.get(name, 0.0) for name in names],
        "operation": [seen.get(name, 0) / total for name in names],
    }
    data = [
        {"type": "bar", "name": name, "x": names, "y": values, "marker": {"color": colour(index)}}
        for index, (name, values) in enumerate(shares.items())
    ]
    p = "" if case.drift is None else f" The {case.drift.method} test for drift has p-value {case.drift.p_value:.2g}."
    definition = f"Shares of the classes among the demands, and where they should be.{p}"
    layout = {**_axes("class", "share"), "barmode": "group"}
    layout["xaxis"]["type"] = "category"
    return Figure("classes", "Classes of demands", definition, data, layout, {"class": names, **shares})


def _ahead(case: Case) -> Counts:
    """Numbers of demands from now to where the wanted confidence is reached, or as far again as it has come."""
    n, more = case.observed.demands, case.needed[0]
    return np.unique(np.linspace(n, n + 1.2 * (more or max(n / 10, 50)), POINTS).astype(np.int64))


def _axes(x: str, y: str) -> dict[str, Any]:
    return {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}, "rangemode": "tozero"}}


def _level(value: float) -> dict[str, Any]:
    """A dotted line across the plot."""
    line = {"dash": "dash", "width": 1, "color": GREY}
    return {"type": "line", "xref": "paper", "yref": "y", "x0": 0, "x1": 1, "y0": value, "y1": value, "line": line}
