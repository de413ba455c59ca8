"""Methods held against each other: areas under curves beside those of random rankings, scores, and time."""

from dataclasses import dataclass

import numpy as np

from hpcopt.analysis.explain.results import Explanations
from hpcopt.analysis.explain.scores import SCORES
from hpcopt.report.text import duration

SURE = 2.0  # standard errors


@dataclass(frozen=True)
class Judged:
    """One method.

    Attributes:
        deletion, insertion: mean area under the curve; low and high are good.
        better_deletion, better_insertion: by how much it is better than the mean area of random rankings, and the
            standard error of this over the inputs.
        scores: means by the names of SCORES.
        seconds_per_input: on one core of a rank.
    """

    deletion: float
    insertion: float
    better_deletion: tuple[float, float]
    better_insertion: tuple[float, float]
    scores: dict[str, float]
    seconds_per_input: float

    @property
    def beats_random(self) -> str:
        """Whether both curves are better than those of random rankings, by two standard errors."""
        sure = [mean > SURE * error for mean, error in (self.better_deletion, self.better_insertion)]
        return {(True, True): "yes", (True, False): "deletion alone", (False, True): "insertion alone"}.get(
            (sure[0], sure[1]), "no"
        )


def judged(explanations: Explanations, name: str) -> Judged | None:
    """A method, where inputs were scored."""
    found = explanations.methods[name]
    if not len(found.deletion):
        return None
    random = explanations.inputs
    return Judged(
        deletion=float(area(found.deletion).mean()),
        insertion=float(area(found.insertion).mean()),
        better_deletion=_mean_and_error(area(random["deletion"]) - area(found.deletion)),
        better_insertion=_mean_and_error(area(found.insertion) - area(random["insertion"])),
        scores={score: _mean(found.scores[score]) for score in SCORES},
        seconds_per_input=found.seconds / max(1, len(found.attribution)),
    )


def area(curves: np.ndarray) -> np.ndarray:
    """Area under curves, (n,), by trapezoids over 0 to 1."""
    return np.asarray(np.trapezoid(curves, dx=1 / (curves.shape[1] - 1), axis=1))


def table(explanations: Explanations) -> list[list[str]]:
    """A row a method, under headings; the best first, by insertion less deletion."""
    rows = [["method", "deletion", "insertion", "beats random", *SCORES, "time an input"]]
    every = {name: judged(explanations, name) for name in explanations.methods}
    known = {name: each for name, each in every.items() if each is not None}
    for name, each in sorted(known.items(), key=lambda item: item[1].deletion - item[1].insertion):
        scores = [f"{each.scores[score]:.2f}" for score in SCORES]
        areas = [f"{each.deletion:.3f}", f"{each.insertion:.3f}"]
        rows.append([name, *areas, each.beats_random, *scores, duration(each.seconds_per_input)])
    random = [f"{float(area(explanations.inputs[curve]).mean()):.3f}" for curve in ("deletion", "insertion")]
    return [*rows, ["random ranking", *random, *["-"] * (len(rows[0]) - 3)]] if known else []


def _mean(values: np.ndarray) -> float:
    """Of those that are numbers."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def _mean_and_error(values: np.ndarray) -> tuple[float, float]:
    error = float(values.std(ddof=1)) / len(values) ** 0.5 if len(values) > 1 else float("inf")
    return float(values.mean()), error
