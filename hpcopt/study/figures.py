"""Plots of a study: phase diagrams over two axes, and curves of medians with their bands over one."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hpcopt.report.figure import Figure, colour, log_axis, plain, thin
from hpcopt.study.grid import label
from hpcopt.study.measures import Measure, grouped, values_of
from hpcopt.study.table import Table

DIAGRAMS, LINES, BANDS = 6, 7, 3  # at most: of a measure; in a plot; lines of rates, whose bands are wide
WIDE = 100  # ratio of largest to smallest above which a scale is logarithmic


def phase_diagrams(
    table: Table, measure: Measure, axes: tuple[str, str], rest: Sequence[str], rows: Any
) -> list[Figure]:
    """A map over two axes for each combination of the others: colour is the median, or the rate."""
    found = []
    for values, members in list(grouped(table, rest, rows).items())[:DIAGRAMS]:
        found.append(_phase_diagram(table, measure, axes, dict(zip(rest, values, strict=True)), members))
    return found


def _phase_diagram(
    table: Table, measure: Measure, axes: tuple[str, str], at: Mapping[str, Any], rows: np.ndarray
) -> Figure:
    x, y = (values_of(table, key, rows) for key in axes)
    values = measure.values(table)
    cells = {place: measure.spread(values[members]) for place, members in grouped(table, axes, rows).items()}
    columns: dict[str, list[Any]] = {key: [place[i] for place in cells] for i, key in enumerate(axes)}
    columns |= {name: plain([cell[i] for cell in cells.values()]) for i, name in enumerate(("low", "middle", "high"))}
    z = np.array([[cells.get((a, b), (np.nan,) * 3)[1] for a in x] for b in y])
    known = z[np.isfinite(z)]
    logarithmic = not measure.relation and len(known) > 0 and known.min() > 0 and known.max() > WIDE * known.min()
    shown = np.log10(z) if logarithmic else z
    bar = {"title": {"text": f"log10 {measure}" if logarithmic else str(measure)}}
    trace: dict[str, Any] = {"type": "heatmap", "x": [_text(v) for v in x], "y": [_text(v) for v in y]}
    trace |= {"z": [plain(row) for row in shown], "colorscale": "Viridis", "colorbar": bar}
    if measure.relation:
        trace |= {"zmin": 0, "zmax": 1}
    layout = {
        name: {"title": {"text": key}, "type": "category"} for name, key in zip(("xaxis", "yaxis"), axes, strict=True)
    }
    what = "the share of points" if measure.relation else "the median"
    definition = (
        f"A cell a pair of values, {len(rows)} points in all; its colour is {what} over seeds and what else differs."
    )
    title = f"{measure} by {axes[0]} and {axes[1]}" + (f", {label(dict(at))}" if at else "")
    return Figure(_name("phase", title), title, definition, [trace], layout, columns)


def curves(table: Table, measure: Measure, x: str, rest: Sequence[str], rows: np.ndarray) -> Figure:
    """A line of medians over an axis for each combination of the others, with quartiles as its band; of a rate the
    share and its interval of 95 %.
    """
    values, lines = measure.values(table), list(grouped(table, rest, rows).items())
    keep = [lines[i] for i in thin(np.arange(len(lines)), LINES)]
    banded = not measure.relation or len(keep) <= BANDS
    data: list[dict[str, Any]] = []
    columns: dict[str, list[Any]] = {name: [] for name in (*rest, x, "points", "low", "middle", "high")}
    for index, (at, members) in enumerate(keep):
        groups = grouped(table, [x], members)
        spreads = [measure.spread(values[own]) for own in groups.values()]
        xs, name = [place[0] for place in groups], label(dict(zip(rest, at, strict=True))) or str(measure)
        lined = _band(xs, spreads, name, colour(index))
        data += lined if banded else lined[-1:]
        for place, spread, own in zip(xs, spreads, groups.values(), strict=True):
            for key, value in zip(columns, (*at, place, len(own), *plain(spread)), strict=True):
                columns[key].append(value)
    layout = {
        "xaxis": _axis(x, columns[x]),
        "yaxis": _axis(str(measure), [v for v in columns["middle"] if v is not None]),
    }
    if measure.relation:
        layout["yaxis"] = {"title": {"text": f"share with {measure}"}, "range": [-0.02, 1.02]}
    band = "share, and Wilson's interval of 95 %" if measure.relation else "median, and quartiles"
    definition = (
        f"Line and band: {band} over seeds." if banded else "Line: share of seeds; its interval is in the table."
    )
    definition += f" {len(keep)} of {len(lines)} lines." * (len(keep) < len(lines))
    title = f"{measure} over {x}"
    return Figure(_name("curves", title), title, definition, data, layout, columns)


def _band(x: list[Any], spreads: Sequence[tuple[float, float, float]], name: str, shade: str) -> list[dict[str, Any]]:
    """A line and what lies about it."""
    low, middle, high = (plain([spread[i] for spread in spreads]) for i in range(3))
    red, green, blue = (int(shade[i : i + 2], 16) for i in (1, 3, 5))
    edge = {"x": x, "mode": "lines", "line": {"width": 0}, "showlegend": False, "hoverinfo": "skip"}
    fill = {"fill": "tonexty", "fillcolor": f"rgba({red},{green},{blue},0.2)"}
    line = {"x": x, "y": middle, "mode": "lines+markers", "name": name, "line": {"color": shade}}
    return [{**edge, "y": low}, {**edge, "y": high, **fill}, line]


def _axis(title: str, values: Sequence[Any]) -> dict[str, Any]:
    if values and all(type(v) in (int, float) and v > 0 for v in values) and max(values) > WIDE * min(values):
        return log_axis(title, values)
    return {"title": {"text": title}}


def _name(kind: str, title: str) -> str:
    return re.sub(r"[^\w.-]+", "-", f"{kind} {title}").strip("-")


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
