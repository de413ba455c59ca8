"""Plots of convergence: loss and scores against steps, seconds and bytes."""

from typing import Any

import numpy as np

from hpcopt.report.figure import COLOURS, Figure, colour, log_axis, plain, thin
from hpcopt.report.read import Run
from hpcopt.report.scaling import series_names
from hpcopt.report.summary import Runs

POINTS = 1000  # of a curve that are drawn
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")


def convergence(runs: Runs, names: list[str]) -> list[Figure]:
    """Loss, and each score, against steps, seconds and bytes: a plot each."""
    figures = []
    curves = {"loss": [_with_restarts(run, _loss_curve(run)) for run, _ in runs]}
    for score in dict.fromkeys(name for run, _ in runs for name in run.evaluations if name not in ("step", "time_s")):
        curves[score] = [_with_restarts(run, _score_curve(run, score)) for run, _ in runs]
    for quantity, each in curves.items():
        data: list[dict[str, Any]] = []
        table: dict[str, list[Any]] = {key: [] for key in ("run", "step", "time_s", "sent_bytes", quantity)}
        looks = _looks(runs, names)
        listed: set[str] = set()
        for name, curve in zip(names, each, strict=True):
            for axis, key in enumerate(("step", "time_s", "sent_bytes")):
                suffix = str(axis + 1) if axis else ""
                axes = {"xaxis": f"x{suffix}", "yaxis": "y"}
                trace = {"x": plain(curve[key]), "y": plain(curve["value"]), **axes}
                line = {**looks[name], "width": 1.5}
                data.append(
                    {**trace, "name": name, "legendgroup": name, "showlegend": name not in listed, "line": line}
                )
                listed.add(name)
                if len(curve["restarts"]):
                    data.append(
                        {**_restarts(curve, key), "name": name, "legendgroup": name, **axes, "marker": _mark(line)}
                    )
            table["run"] += [name] * len(curve["value"])
            for key in ("step", "time_s", "sent_bytes"):
                table[key] += plain(curve[key])
            table[quantity] += plain(curve["value"])
        if not table["run"]:
            continue
        layout: dict[str, Any] = {
            "yaxis": log_axis(quantity, table[quantity]) if "loss" in quantity else {"title": {"text": quantity}}
        }
        for axis, title in enumerate(("step", "seconds", "bytes sent, all ranks")):
            edges = [axis * 0.35, axis * 0.35 + 0.3]
            layout[f"xaxis{axis + 1 if axis else ''}"] = {"title": {"text": title}, "domain": edges}
        definition = (
            f"{quantity} as the run measured it, against steps, wall seconds without the gaps between restarts, "
        )
        definition += (
            "and bytes sent so far by all ranks; repeats in one colour. A diamond on a curve is a restart of that run."
        )
        figures.append(Figure(quantity, quantity, definition, data, layout, table))
    return figures


def _with_restarts(run: Run, curve: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A curve, and which of its points are the first at or after each restart of the run."""
    first = np.searchsorted(curve["step"], [start.step for start in run.starts[1:]])
    return {**curve, "restarts": first[first < len(curve["step"])].astype(int)}


def _restarts(curve: dict[str, np.ndarray], key: str) -> dict[str, Any]:
    rows = curve["restarts"]
    points = {"x": plain(curve[key][rows]), "y": plain(curve["value"][rows])}
    return {**points, "mode": "markers", "showlegend": False, "hovertext": "restart"}


def _mark(line: dict[str, Any]) -> dict[str, Any]:
    return {"symbol": "diamond", "size": 9, "color": line["color"]}


def _looks(runs: Runs, names: list[str]) -> dict[str, dict[str, str]]:
    """A colour a name; if there are too few colours, one a series, and a dash for its number of ranks."""
    distinct = list(dict.fromkeys(names))
    if len(distinct) <= len(COLOURS):
        return {name: {"color": colour(index)} for index, name in enumerate(distinct)}
    series, ranks = series_names([run for run, _ in runs]), sorted({run.ranks for run, _ in runs})
    order = list(dict.fromkeys(series))
    return {
        name: {"color": colour(order.index(own)), "dash": DASHES[ranks.index(run.ranks) % len(DASHES)]}
        for name, own, (run, _) in zip(names, series, runs, strict=True)
    }


def _loss_curve(run: Run) -> dict[str, np.ndarray]:
    loss = run.columns.get("loss", np.zeros(0))
    rows = thin(np.flatnonzero(~np.isnan(loss)), POINTS)
    sent = np.cumsum(run.sent_bytes)
    return {
        "step": run.columns["step"][rows],
        "time_s": run.columns.get("time_s", np.zeros(len(loss)))[rows],
        "sent_bytes": sent[rows],
        "value": loss[rows],
    }


def _score_curve(run: Run, score: str) -> dict[str, np.ndarray]:
    if score not in run.evaluations:
        return {key: np.zeros(0) for key in ("step", "time_s", "sent_bytes", "value")}
    sent = np.concatenate([[0], np.cumsum(run.sent_bytes)])
    done = np.searchsorted(run.columns["step"], run.evaluations["step"], side="right")
    return {
        "step": run.evaluations["step"],
        "time_s": run.evaluations["time_s"],
        "sent_bytes": sent[done],
        "value": run.evaluations[score],
    }
