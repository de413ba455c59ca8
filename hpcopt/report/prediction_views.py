"""A prediction as text for a terminal, and as plots with the same words under them."""

import math
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from hpcopt.report.figure import Figure, colour, log_axis
from hpcopt.report.prediction import Prediction, Row
from hpcopt.report.step_model import INTERVAL, Estimate
from hpcopt.report.text import duration

KINDS = {"strong": "the same batch in all", "weak": "the same batch a rank as on the most"}
ASSUMED = "a core for every thread"


def in_terminal(prediction: Prediction) -> RenderableType:
    """The model, how it did on what was held out, and a row for each number of ranks."""
    table = Table(box=None, header_style="bold", padding=(0, 1))
    for heading in ("ranks", "batch"):
        table.add_column(heading)
    series = list(prediction.rows[0].steps)
    for name in series:
        table.add_column(name, justify="right")
    table.add_column("fastest")
    for row in _reached(prediction):
        table.add_row(
            f"{row.ranks:,}", KINDS[row.kind], *(_text(row.steps[name]) for name in series), row.fastest or ""
        )
    lines = [_model(prediction), *_held_out(prediction)]
    return Group(Text("\nPrediction", style="bold"), Padding(Text("\n".join(lines)), (0, 1)), table)


def figures(prediction: Prediction) -> list[Figure]:
    """A plot for each way to share the batch: step time on each number of ranks, with its interval."""
    kinds = [kind for kind in KINDS if any(row.kind == kind for row in _reached(prediction))]
    return [_figure(prediction, kind, [r for r in _reached(prediction) if r.kind == kind]) for kind in kinds]


def _figure(prediction: Prediction, kind: str, rows: list[Row]) -> Figure:
    table: dict[str, list[Any]] = {key: [] for key in ("series", "ranks", "step_s", "low_s", "high_s")}
    data = []
    series = list(rows[0].steps)
    for index, name in enumerate(series):
        points = [(row.ranks, estimate) for row in rows if (estimate := row.steps[name]) is not None]
        apart = 1 + 0.08 * (index - (len(series) - 1) / 2)  # so that intervals do not hide each other
        data.append(
            {**_trace(points, apart), "name": name, "line": {"color": colour(index), "dash": "dot", "width": 1}}
        )
        for ranks, e in points:
            values = (name, ranks, e.seconds, *(v if math.isfinite(v) else None for v in (e.low_s, e.high_s)))
            for key, value in zip(table, values, strict=True):
                table[key].append(value)
    sizes = [row.ranks for row in rows]
    axis: dict[str, Any] = {"title": {"text": "ranks"}, "type": "log", "tickvals": sizes}
    axis |= {"ticktext": [f"{p:,}" for p in sizes], "range": [math.log10(sizes[0]) - 0.2, math.log10(sizes[-1]) + 0.2]}
    layout = {"xaxis": axis, "yaxis": log_axis("seconds a step", [*table["step_s"], *table["low_s"], *table["high_s"]])}
    fastest = "; ".join(f"on {row.ranks:,} ranks {row.fastest}" for row in rows if row.fastest)
    definition = f"Not measured: {_model(prediction)} {' '.join(_held_out(prediction))} Here: {KINDS[kind]}, {ASSUMED}."
    definition += f" Fastest: {fastest}." if fastest else ""
    return Figure(f"prediction-{kind}", f"Predicted step time, {KINDS[kind]}", definition, data, layout, table)


def _trace(points: list[tuple[int, Estimate]], apart: float) -> dict[str, Any]:
    trace: dict[str, Any] = {"x": [ranks * apart for ranks, _ in points], "y": [e.seconds for _, e in points]}
    trace |= {"mode": "lines+markers", "marker": {"size": 9}, "hoverinfo": "text+name"}
    trace["text"] = [f"{ranks:,} ranks: {_text(e)}" for ranks, e in points]
    if all(math.isfinite(e.low_s) for _, e in points):
        above, below = ([max(0.0, s) for s in side] for side in zip(*(_ends(e) for _, e in points), strict=True))
        trace["error_y"] = {"type": "data", "symmetric": False, "array": above, "arrayminus": below}
    return trace


def _ends(e: Estimate) -> tuple[float, float]:
    return e.high_s - e.seconds, e.seconds - e.low_s


def _reached(prediction: Prediction) -> list[Row]:
    return [row for row in prediction.rows if any(row.steps.values())]


def _model(p: Prediction) -> str:
    latency, bandwidth = p.latency, _inverse(p.s_per_byte)
    text = f"fitted to {p.runs} runs on {', '.join(map(str, p.sizes))} ranks: {_text(latency)} a message, "
    text += f"{_rate(bandwidth)} a rank; in brackets, {INTERVAL[1] - INTERVAL[0]} % intervals."
    if p.oversubscribed:
        text += " Some runs shared cores, which the model takes for evenly shared: it is less sure than it looks."
    return text


def _held_out(p: Prediction) -> list[str]:
    if not p.held_out:
        return ["Nothing was held out: that takes three numbers of ranks."]
    return [
        f"Held out, {h.series} on {h.ranks} ranks: predicted {_text(h.predicted)} from fewer, "
        f"measured {duration(h.measured_s)}, {h.error:+.0%}."
        for h in p.held_out
    ]


def _text(estimate: Estimate | None) -> str:
    if estimate is None:
        return "-"
    if not math.isfinite(estimate.low_s):
        return duration(estimate.seconds)
    return f"{duration(estimate.seconds)} ({duration(estimate.low_s)} to {duration(estimate.high_s)})"


def _inverse(e: Estimate) -> tuple[float, float, float]:
    return tuple(1 / s if s > 0 else math.inf for s in (e.seconds, e.high_s, e.low_s))  # type: ignore[return-value]


def _rate(bytes_per_s: tuple[float, float, float]) -> str:
    value, low, high = bytes_per_s
    if not math.isfinite(value):
        return "no limit seen on bytes"
    spread = f" ({low / 1e6:,.3g} to {high / 1e6:,.3g})" if math.isfinite(low) and math.isfinite(high) else ""
    return f"{value / 1e6:,.3g} MB/s{spread}"
