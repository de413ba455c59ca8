"""Plots of what steps cost: time by phase, bytes, memory, waiting for other ranks."""

from typing import Any

import numpy as np

from hpcopt.report.figure import COLOURS, GREY, Figure, colour, log_axis, plain, ranks_text
from hpcopt.report.read import Run
from hpcopt.report.summary import Runs
from hpcopt.store.step_times import BESIDE_THE_STEP, BESIDE_THE_THREAD

MAP_COLUMNS = 400  # of a heat map
PHASE_COLOURS = {
    "data": "#7a6ff0",
    "forward": "#56b4e9",
    "backward": "#0a84c6",
    "factor": "#cc79a7",
    "inverse": "#8a5a83",
    "precondition": "#e9b7d5",
    "exchange": "#d55e00",
    "encode": "#f0b84a",
    "comm": "#e69f00",
    "decode": "#b97f00",
    "update": "#009e73",
    "other": GREY,
}


def phases(runs: Runs, names: list[str]) -> Figure | None:
    """A bar a run, made of the mean seconds in each phase."""
    present = list(dict.fromkeys(phase for _, s in runs for phase in (*s.phases, *s.overlapped)))
    if not present:
        return None
    ranks = dict(zip(names, (run.ranks for run, _ in runs), strict=True))
    bars = [name if ranks_text(p) in name else f"{name}, {ranks_text(p)}" for name, p in ranks.items()]
    beside = any(summary.overlapped for _, summary in runs)
    data: list[dict[str, Any]] = []
    table: dict[str, list[Any]] = {"run": list(ranks), "ranks": list(ranks.values())}
    for index, phase in enumerate(present):
        own = _means(names, [s.phases.get(phase, (0.0, 0.0))[0] for _, s in runs])
        overlapped = _means(names, [s.overlapped.get(phase, 0.0) for _, s in runs])
        table[f"{phase}_s"] = seconds = [a + b for a, b in zip(own, overlapped, strict=True)]
        if not beside or phase not in BESIDE_THE_THREAD:
            data.append({"type": "bar", "name": phase, "x": [s * 1e3 for s in seconds], "y": bars, "orientation": "h"})
            data[-1]["marker"] = {"color": PHASE_COLOURS.get(phase) or colour(index)}
    layout: dict[str, Any] = {
        "barmode": "stack",
        "xaxis": {"title": {"text": "ms a step"}},
        "yaxis": {"autorange": "reversed"},
    }
    layout["height"] = 180 + 34 * len(bars)
    definition = (
        "Mean seconds of a training step in each phase, over ranks, repeats and warm steps (the first ten left out). "
        f"“other” is what no phase claims; {' and '.join(BESIDE_THE_STEP)} happen between steps and are left out."
        + (f" {', '.join(BESIDE_THE_THREAD)} of gradients pass beside these, and are in the table only." * beside)
    )
    return Figure("phases", "Where the time of a step goes", definition, data, layout, table)


def traffic(runs: Runs, names: list[str]) -> Figure | None:
    """Bytes sent beside what dense collectives would have sent."""
    table: dict[str, list[Any]] = {
        "run": list(dict.fromkeys(names)),
        "sent_bytes": _means(names, [summary.sent_bytes for _, summary in runs]),
        "dense_bytes": _means(names, [summary.dense_bytes for _, summary in runs]),
    }
    if not any(value > 0 for value in table["dense_bytes"]):
        return None
    data = [
        {"type": "bar", "name": name, "x": table["run"], "y": plain(table[key]), "marker": {"color": shade}}
        for name, key, shade in (("sent", "sent_bytes", COLOURS[0]), ("dense", "dense_bytes", GREY))
    ]
    layout = {"barmode": "group", "yaxis": {"title": {"text": "bytes a step, all ranks"}, "rangemode": "tozero"}}
    definition = "Bytes that all ranks together handed to the transport in a step, beside what dense collectives send."
    return Figure("bytes", "Bytes sent against dense", definition, data, layout, table)


def collectives(runs: Runs, names: list[str]) -> Figure | None:
    """A point a bucket: what the calibration expected of its collective, and what it took."""
    keys = ("bucket", "bytes", "algorithm", "predicted_s", "measured_s")
    table: dict[str, list[Any]] = {key: [] for key in ("run", *keys)}
    for (run, _), name in zip(runs, names, strict=True):
        for row in zip(*(run.choices.get(key, np.zeros(0)).tolist() for key in keys), strict=True):
            if row[-2] > 0 and row[-1] > 0:
                named = (name, row[0], row[1], row[2].decode(), *row[3:])
                for key, value in zip(table, named, strict=True):
                    table[key].append(value)
    if not table["run"]:
        return None
    data: list[dict[str, Any]] = []
    for index, name in enumerate(dict.fromkeys(table["run"])):
        rows = [i for i, own in enumerate(table["run"]) if own == name]
        what = [f"bucket {table['bucket'][i]}, {table['bytes'][i]:,} bytes, {table['algorithm'][i]}" for i in rows]
        trace = {"x": [table["predicted_s"][i] for i in rows], "y": [table["measured_s"][i] for i in rows]}
        data.append(
            {**trace, "text": what, "name": name, "mode": "markers", "marker": {"color": colour(index), "size": 9}}
        )
    ends = [f(table["predicted_s"] + table["measured_s"]) for f in (min, max)]
    equal = {"dash": "dot", "width": 1, "color": GREY}
    data.append({"x": ends, "y": ends, "mode": "lines", "line": equal, "name": "equal", "hoverinfo": "skip"})
    layout = {
        "xaxis": log_axis("predicted seconds", table["predicted_s"]),
        "yaxis": log_axis("measured seconds", table["measured_s"]),
    }
    definition = (
        "A point a bucket of gradients: the seconds that its collective was expected to take by the calibration at the "
        "start, and took: the mean over steps of the shortest of the ranks' times."
    )
    return Figure("collectives", "Collectives, predicted and measured", definition, data, layout, table)


def memory(runs: Runs, names: list[str]) -> Figure | None:
    """A box a run and a point a rank."""
    peaks = [np.atleast_1d(run.attributes.get("peak_memory_bytes", np.zeros(0))) for run, _ in runs]
    if not any(len(peak) for peak in peaks):
        return None
    data: list[dict[str, Any]] = []
    for index, label in enumerate(dict.fromkeys(names)):
        own = np.concatenate([peak for name, peak in zip(names, peaks, strict=True) if name == label])
        data.append({"type": "box", "name": label, "y": plain(own / 1e6), "boxpoints": "all"})
        data[-1]["marker"] = {"color": colour(index)}
    table: dict[str, list[Any]] = {
        "run": [name for name, peak in zip(names, peaks, strict=True) for _ in peak],
        "rank": [rank for peak in peaks for rank in range(len(peak))],
        "peak_memory_bytes": [int(value) for peak in peaks for value in peak],
    }
    layout = {"yaxis": {"title": {"text": "MB a rank"}, "rangemode": "tozero"}, "showlegend": False}
    definition = "Largest resident memory of each rank's process up to the end of the run, a point a rank."
    return Figure("memory", "Memory of the ranks", definition, data, layout, table)


def waiting(run: Run, name: str) -> Figure | None:
    """A map of the waiting of each rank in each step."""
    if run.wait_s.shape[1] < 2 or not np.nan_to_num(run.wait_s).any():
        return None
    columns = min(MAP_COLUMNS, len(run.wait_s))
    blocks = np.array_split(np.arange(len(run.wait_s)), columns)
    means = np.array([np.nanmean(np.nan_to_num(run.wait_s[rows]), axis=0) for rows in blocks])
    steps = [int(run.columns["step"][rows[0]]) for rows in blocks]
    colours = {"colorscale": "Viridis", "colorbar": {"title": {"text": "ms"}, "xpad": 36}, "zmin": 0}
    colours["zmax"] = float(np.quantile(means, 0.95)) * 1e3
    data = [{"type": "heatmap", "x": steps, "z": np.round(means.T * 1e3, 4).tolist(), **colours}]
    layout = {
        "xaxis": {"title": {"text": "step"}},
        "yaxis": {"title": {"text": "rank"}, "dtick": _tick(run.wait_s.shape[1])},
    }
    table: dict[str, list[Any]] = {"step": steps}
    table |= {f"rank{rank}_s": means[:, rank].tolist() for rank in range(means.shape[1])}
    definition = (
        "Seconds that each rank's training thread waited for other ranks, a row a rank, means over neighbouring steps; "
        "the colour ends at the 95th percentile. A dark row among bright ones is a rank that the others wait for."
    )
    return Figure(f"waiting-{name.rstrip('*')}", f"Waiting for others: {name}", definition, data, layout, table)


def _means(names: list[str], values: list[float]) -> list[float]:
    """Means over runs of the same name, in the order of their first appearance."""
    return [
        float(np.mean([v for n, v in zip(names, values, strict=True) if n == name])) for name in dict.fromkeys(names)
    ]


def _tick(ranks: int) -> int:
    return int(max(1, 2 ** np.ceil(np.log2(max(ranks, 1) / 8))))
