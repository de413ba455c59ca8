"""All plots of a report."""

from hpcopt.report import costs, curves, prediction_views, returns, scaling_plots
from hpcopt.report.figure import Figure, labels_of
from hpcopt.report.prediction import Prediction
from hpcopt.report.scaling import series_of
from hpcopt.report.summary import Runs

MAPS = 6  # runs, each the first of its repeats, whose waiting is drawn, each in a plot of its own


def figures_of(runs: Runs, prediction: Prediction | None = None) -> list[Figure]:
    """All plots that the runs have the numbers for, and those of a prediction."""
    marks = ["*" if summary.labels else "" for _, summary in runs]
    names = [label + mark for label, mark in zip(labels_of([run for run, _ in runs]), marks, strict=True)]
    learned = returns.figures(runs, names)
    drawn = {returns.RETURN} if learned else set()
    found: list[Figure | None] = [
        *learned,
        *(figure for figure in curves.convergence(runs, names) if figure.name not in drawn),
    ]
    found += [costs.phases(runs, names), costs.traffic(runs, names), costs.memory(runs, names)]
    first = {name: run for (run, _), name in reversed(list(zip(runs, names, strict=True)))}
    maps = [costs.waiting(first[name], name) for name in dict.fromkeys(names)]
    found += [figure for figure in maps if figure is not None][:MAPS]
    series = series_of(runs)
    for kind in ("strong", "weak"):
        found += scaling_plots.scaling([s for s in series if s.kind == kind], kind)
    found.append(costs.collectives(runs, names))
    if prediction is not None:
        found += prediction_views.figures(prediction)
    return [figure for figure in found if figure is not None]
