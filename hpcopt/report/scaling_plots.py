"""Plots of scaling: step time with its ideal, efficiency, Karp-Flatt."""

from typing import Any

from hpcopt.report.figure import Figure, colour, log_axis, vertical_line
from hpcopt.report.scaling import Series


def scaling(series: list[Series], kind: str) -> list[Figure]:
    """Step time with its ideal, efficiency, and Karp-Flatt, against ranks."""
    if not series:
        return []
    rows = [(s.name, p) for s in series for p in s.points]
    keys = ("ranks", "repeats", "step_s", "low_s", "high_s", "speedup", "efficiency", "karp_flatt")
    table: dict[str, list[Any]] = {"series": [name for name, _ in rows]}
    table |= {key: [getattr(point, key) for _, point in rows] for key in keys}
    ranks = sorted({p.ranks for _, p in rows})
    axis = {"title": {"text": "ranks"}, "type": "log", "tickvals": ranks}
    times: list[dict[str, Any]] = []
    for index, s in enumerate(series):
        x, first = [p.ranks for p in s.points], s.points[0]
        spread = {"type": "data", "symmetric": False, "array": [p.high_s - p.step_s for p in s.points]}
        spread["arrayminus"] = [p.step_s - p.low_s for p in s.points]
        line, y = {"color": colour(index)}, [p.step_s for p in s.points]
        times.append({"x": x, "y": y, "error_y": spread, "name": s.name, "mode": "lines+markers", "line": line})
        ideal = [first.step_s * (first.ranks / p if kind == "strong" else 1) for p in x]
        dashed = {"color": colour(index), "dash": "dot", "width": 1}
        times.append({"x": x, "y": ideal, "name": "ideal", "mode": "lines", "line": dashed, "showlegend": False})
    definition = {
        "strong": "The same global batch on more ranks. Dotted: T(p0) p0 / p.",
        "weak": "The same batch a rank, so the global batch grows, which changes the problem. Dotted: T(p0).",
    }[kind]
    definition += " Median over repeats of the median step time, bars from the fastest to the slowest repeat."
    time_layout = {"xaxis": axis, "yaxis": log_axis("seconds a step", [*table["low_s"], *table["high_s"]])}
    title = f"{kind.capitalize()} scaling"
    figures = [Figure(f"{kind}-time", f"{title}: step time", definition, times, time_layout, table)]
    formula = {"strong": "E = p0 T(p0) / (p T(p))", "weak": "E = T(p0) / T(p)"}[kind]
    layout = {"xaxis": axis, "yaxis": {"title": {"text": "efficiency"}, "rangemode": "tozero"}}
    layout["shapes"] = [{**vertical_line(0), "xref": "paper", "yref": "y", "x0": 0, "x1": 1, "y0": 0.8, "y1": 0.8}]
    text = f"{formula}; dotted: 0.8, often taken as the least that is acceptable."
    figures.append(
        Figure(f"{kind}-efficiency", f"{title}: efficiency", text, _lines(series, "efficiency"), layout, table)
    )
    if kind == "strong":
        layout = {"xaxis": axis, "yaxis": {"title": {"text": "serial fraction"}}}
        text = "Karp-Flatt e = (1/S - 1/q) / (1 - 1/q), S = T(p0) / T(p), q = p / p0. "
        text += "A level curve is a serial part, a rising one overhead. No point where more ranks were slower than p0."
        figures.append(Figure("karp-flatt", f"{title}: Karp-Flatt", text, _lines(series, "karp_flatt"), layout, table))
    return figures


def _lines(series: list[Series], key: str) -> list[dict[str, Any]]:
    return [
        {
            "x": [p.ranks for p in s.points if getattr(p, key) is not None],
            "y": [getattr(p, key) for p in s.points if getattr(p, key) is not None],
            "name": s.name,
            "mode": "lines+markers",
            "line": {"color": colour(index)},
        }
        for index, s in enumerate(series)
    ]
