"""All plots of a report."""

from hpcopt.report import costs, curves, scaling_plots
from hpcopt.report.figure import Figure, names_of
from hpcopt.report.scaling import series_of
from hpcopt.report.summary import Runs

MAPS = 6  # runs whose waiting is drawn, each in a plot of its own


def figures_of(runs: Runs) -> list[Figure]:
    """All plots that the runs have the numbers for."""
    names = names_of([run for run, _ in runs])
    found = [*curves.convergence(runs, names), costs.phases(runs, names), costs.traffic(runs, names)]
    found += [costs.memory(runs, names)]
    found += [costs.waiting(run, name) for (run, _), name in list(zip(runs, names, strict=True))[:MAPS]]
    series = series_of(runs)
    for kind in ("strong", "weak"):
        found += scaling_plots.scaling([s for s in series if s.kind == kind], kind)
    return [figure for figure in found if figure is not None]
