"""Plots of reinforcement learning: returns of repeats and their interquartile mean, and what solvers record."""

from typing import Any

import numpy as np

from hpcopt.report.figure import Figure, colour, plain, thin
from hpcopt.report.interquartile import bootstrap_interval, interquartile_mean
from hpcopt.report.read import Run
from hpcopt.report.summary import Runs

RETURN = "evaluation_return"
AXES = {"env_steps": "environment steps", "time_s": "seconds", "updates": "updates"}
POINTS = 100  # of a mean, at most
RECORDED = {
    "return": "sums of the rewards of training episodes, with exploration, a mean over those that ended in a step",
    "lag": "the weights that collectors acted by are so many steps of the run old",
    "replay_age": "transitions of a batch are so many environment steps old",
    "collector_idle": "share of their time that collectors wait",
    "learner_idle": "share of its time that the learner waits",
    "policy_rank": "effective rank of the policy's features on a batch, by 99 % of their singular values",
    "critics_rank": "effective rank of the critics' features on a batch, by 99 % of their singular values",
    "policy_dormant": "share of the policy's units that hardly speak (2.5 % of their layer's mean)",
    "critics_dormant": "share of the critics' units that hardly speak (2.5 % of their layer's mean)",
}
CURVE = 500  # points of a run that are drawn
Groups = dict[str, list[dict[str, np.ndarray]]]


def figures(runs: Runs, names: list[str]) -> list[Figure]:
    """Returns against environment steps, seconds and updates, the last returns, and what was recorded of collecting and
    learning; none for runs that collect nothing.
    """
    learners = [(run, name) for (run, _), name in zip(runs, names, strict=True) if "env_steps" in run.columns]
    groups = _grouped(learners)
    found = [_returns(groups), _last_returns(groups), *(_recorded(learners, column) for column in RECORDED)]
    return [figure for figure in found if figure is not None]


def _curve(run: Run) -> dict[str, np.ndarray]:
    """The evaluations of a run: the axes and ``RETURN``, each (k,)."""
    value = run.evaluations.get(RETURN, np.zeros(0))
    rows = np.flatnonzero(~np.isnan(value))
    steps = run.evaluations["step"][rows]
    curve = {axis: _at(run, axis, steps) for axis in ("env_steps", "updates")}
    return {**curve, "time_s": run.evaluations["time_s"][rows], RETURN: value[rows]}


def _at(run: Run, column: str, steps: np.ndarray) -> np.ndarray:
    """The newest known values of a column that rises, at steps; 0 before the first."""
    values = run.columns.get(column, np.zeros(0))
    known = np.flatnonzero(~np.isnan(values))
    done = np.searchsorted(run.columns["step"][known], steps, side="right")
    return np.concatenate([[0.0], values[known]])[done]


def _grouped(learners: list[tuple[Run, str]]) -> Groups:
    """Curves with points, by the name that repeats share."""
    groups: Groups = {}
    for run, name in learners:
        if len((curve := _curve(run))[RETURN]):
            groups.setdefault(name, []).append(curve)
    return groups


def _returns(groups: Groups) -> Figure | None:
    """A thin line a run, and through repeats their interquartile mean in its interval."""
    if not groups:
        return None
    data: list[dict[str, Any]] = []
    table: dict[str, list[Any]] = {key: [] for key in ("run", "repeat", *AXES, RETURN)}
    for index, (name, curves) in enumerate(groups.items()):
        for number, axis in enumerate(AXES):
            axes = {"xaxis": f"x{number + 1 if number else ''}", "yaxis": "y"}
            shared = {"name": name, "legendgroup": name, **axes}
            for curve in curves if len(curves) > 1 else ():
                thin = {"color": colour(index), "width": 1}
                line = {"x": plain(curve[axis]), "y": plain(curve[RETURN]), "mode": "lines", "line": thin}
                data.append({**shared, **line, "opacity": 0.4, "showlegend": False})
            data += [{**shared, **trace} for trace in _mean(curves, axis, index)]
            data[-1]["showlegend"] = not number
        for repeat, curve in enumerate(curves):
            table["run"] += [name] * len(curve[RETURN])
            table["repeat"] += [repeat] * len(curve[RETURN])
            for key in (*AXES, RETURN):
                table[key] += plain(curve[key])
    layout: dict[str, Any] = {"yaxis": {"title": {"text": "return of evaluation episodes"}}}
    for number, title in enumerate(AXES.values()):
        edges = [number * 0.35, number * 0.35 + 0.3]
        layout[f"xaxis{number + 1 if number else ''}"] = {"title": {"text": title}, "domain": edges}
    definition = (
        "Mean return of evaluation episodes against environment steps of all collectors, wall seconds, and updates: a "
        "thin line a run. Repeats share a colour, and have a thick line: their interquartile mean (a quarter of the "
        "runs, rounded down, is dropped at either end), in its 95 % interval by stratified bootstrap over runs."
    )
    return Figure("returns", "Returns", definition, data, layout, table)


def _mean(curves: list[dict[str, np.ndarray]], axis: str, index: int) -> list[dict[str, Any]]:
    """The band and the line of the interquartile mean where all curves have points; between these they are straight."""
    first, last = max(curve[axis][0] for curve in curves), min(curve[axis][-1] for curve in curves)
    x = np.unique(np.concatenate([curve[axis] for curve in curves]))
    x = x[(x >= first) & (x <= last)]
    x = thin(x, POINTS)
    scores = np.stack([np.interp(x, curve[axis], curve[RETURN]) for curve in curves])  # (runs, points)
    line = {"color": colour(index), "width": 3 if len(curves) > 1 else 1}
    mean = {"x": plain(x), "y": plain(interquartile_mean(scores.T[:, :, None])), "mode": "lines", "line": line}
    if len(curves) < 2 or not len(x):
        return [mean]
    low, high = zip(*(bootstrap_interval(column[:, None]) for column in scores.T), strict=True)
    around = {"x": plain(np.concatenate([x, x[::-1]])), "y": plain(np.concatenate([low, high[::-1]]))}
    band = {"mode": "lines", "fill": "toself", "fillcolor": f"{colour(index)}33", "line": {"width": 0}}
    return [{**around, **band, "hoverinfo": "skip", "showlegend": False}, mean]


def _last_returns(groups: Groups) -> Figure | None:
    """A point a kind of run: the interquartile mean of its repeats' last evaluations, in its interval."""
    if not any(len(curves) > 1 for curves in groups.values()):
        return None
    table: dict[str, list[Any]] = {key: [] for key in ("run", "repeats", "interquartile_mean", "low", "high")}
    for name, curves in groups.items():
        scores = np.array([[curve[RETURN][-1]] for curve in curves])
        row = (name, len(curves), float(interquartile_mean(scores)), *bootstrap_interval(scores))
        for key, value in zip(table, row, strict=True):
            table[key].append(value)
    data: list[dict[str, Any]] = []
    for index, name in enumerate(table["run"]):
        middle, low, high = (table[key][index] for key in ("interquartile_mean", "low", "high"))
        spread = {"type": "data", "symmetric": False, "array": [high - middle], "arrayminus": [middle - low]}
        data.append({"x": [middle], "y": [name], "error_x": spread, "mode": "markers", "name": name})
        data[-1]["marker"] = {"color": colour(index), "size": 11}
    layout = {"xaxis": {"title": {"text": "return"}}, "yaxis": {"autorange": "reversed"}, "showlegend": False}
    layout["height"] = 180 + 34 * len(data)
    definition = (
        "Interquartile mean of the last evaluation of each repeat, in its 95 % interval by stratified bootstrap. Fewer "
        "than four repeats are all in the mean."
    )
    return Figure("last-returns", "Returns at the end", definition, data, layout, table)


def _recorded(learners: list[tuple[Run, str]], column: str) -> Figure | None:
    """One column against environment steps, a line a run."""
    data: list[dict[str, Any]] = []
    table: dict[str, list[Any]] = {key: [] for key in ("run", "env_steps", column)}
    order = list(dict.fromkeys(name for _, name in learners))
    for run, name in learners:
        values = run.columns.get(column, np.zeros(0))
        rows = thin(np.flatnonzero(~np.isnan(values)), CURVE)
        if not len(rows):
            continue
        x, y = _at(run, "env_steps", run.columns["step"][rows]), values[rows]
        seen = any(trace["name"] == name for trace in data)
        line = {"color": colour(order.index(name)), "width": 1.5}
        data.append({"x": plain(x), "y": plain(y), "mode": "lines", "line": line, "name": name})
        data[-1] |= {"legendgroup": name, "showlegend": not seen}
        table["run"] += [name] * len(rows)
        table["env_steps"] += plain(x)
        table[column] += plain(y)
    if not data or not any(table[column]):
        return None
    across, up = {"title": {"text": "environment steps"}}, {"title": {"text": column}, "rangemode": "tozero"}
    layout = {"xaxis": across, "yaxis": up}
    definition = f"{column} against environment steps, a line a run: {RECORDED[column]}."
    return Figure(column, column.replace("_", " ").capitalize(), definition, data, layout, table)
