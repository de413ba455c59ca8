"""What a plot of a report is, and what all plots share."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpcopt.report.attributes import printable
from hpcopt.report.read import Run
from hpcopt.report.scaling import series_names

COLOURS = ("#0a84c6", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#7a6ff0", "#56b4e9")
GREY = "#9a9a9a"


@dataclass(frozen=True)
class Figure:
    """A plot.

    Attributes:
        definition: what is drawn and how it was computed.
        data, layout: plotly's.
        table: columns by name, all of the same length.
    """

    name: str
    title: str
    definition: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    table: dict[str, list[Any]]


def names_of(runs: Sequence[Run]) -> list[str]:
    """Short names of runs, all different: as much of the end of a run directory's path as tells them apart."""
    folders = [tuple(map(printable, run.path.parent.parts)) for run in runs]
    ends = range(1, max(map(len, folders), default=1) + 1)
    length = next((n for n in ends if len({f[-n:] for f in folders}) == len(folders)), ends[-1])
    return [str(Path(*f[-length:])) for f in folders]


def labels_of(runs: Sequence[Run]) -> list[str]:
    """Names of runs, the same for repeats: runs that differ in nothing but the seed."""
    batches = [run.config.get("workload", {}).get("batch") for run in runs]
    labels = [f"{name}, {ranks_text(run.ranks)}" for name, run in zip(series_names(runs), runs, strict=True)]
    if len(set(batches)) > 1:
        labels = [f"{label}, batch {batch}" for label, batch in zip(labels, batches, strict=True)]
    return labels if len(set(labels)) < len(labels) else names_of(runs)


def ranks_text(ranks: int) -> str:
    """1 rank, 2 ranks."""
    return f"{ranks} rank" + "s" * (ranks != 1)


def log_axis(title: str, values: Sequence[float | None]) -> dict[str, Any]:
    """A logarithmic axis with round numbers at its ticks, the closer the fewer decades the values span."""
    known = np.array([v for v in values if v is not None and np.isfinite(v) and v > 0])
    low, high = (known.min(), known.max()) if known.size else (1.0, 10.0)
    steps = (1, 1.5, 2, 3, 4, 5, 6, 8) if high < 8 * low else (1, 2, 5) if high < 1000 * low else (1,)
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    ticks = [step * 10.0**decade for decade in decades for step in steps]
    return {"title": {"text": title}, "type": "log", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}


def colour(index: int) -> str:
    """The colour of the index-th run, series or phase."""
    return COLOURS[index % len(COLOURS)]


def vertical_line(step: int) -> dict[str, Any]:
    """A dotted line through the plot at a step."""
    line = {"dash": "dot", "width": 1, "color": GREY}
    return {"type": "line", "xref": "x", "yref": "paper", "x0": step, "x1": step, "y0": 0, "y1": 1, "line": line}


def plain(values: Any) -> list[Any]:
    """Plain numbers, null where there is none, as JSON wants them."""
    return [None if isinstance(v, float) and not np.isfinite(v) else v for v in np.asarray(values).tolist()]


def thin(values: np.ndarray, points: int) -> np.ndarray:
    """What to draw of values: all, or about ``points`` of them with the first and the last."""
    kept: np.ndarray = values[np.unique(np.linspace(0, len(values) - 1, min(len(values), points)).astype(int))]
    return kept


def write_tables(figures: Sequence[Figure], folder: Path) -> None:
    """Write the table of each figure as a CSV file of its name."""
    folder.mkdir(parents=True, exist_ok=True)
    for figure in figures:
        with (folder / f"{figure.name.replace('/', '_')}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(figure.table)
            writer.writerows(zip(*figure.table.values(), strict=True))
