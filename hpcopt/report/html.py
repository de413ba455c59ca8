"""The report as one page that needs nothing else: no network, no server; light or dark as the reader's system is."""

import html
import json
from collections.abc import Sequence
from pathlib import Path

from hpcopt.errors import MetricsError
from hpcopt.report.figure import Figure
from hpcopt.report.overview import overview
from hpcopt.report.summary import Runs, notes_of

FEW_COLUMNS = 14  # of a table that fits a page
TEMPLATE = Path(__file__).with_name("page.html")


def page(runs: Runs, figures: list[Figure], columns: Sequence[str] = (), refresh_s: float | None = None) -> str:
    """The whole page; ``columns`` of the table of runs, if not all. It loads itself again every ``refresh_s``.

    Raises:
        MetricsError: plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as cause:
        raise MetricsError("plots need plotly: `pip install plotly`, or the extra `report`") from cause
    parts = {
        "REFRESH": "" if refresh_s is None else f'<meta http-equiv="refresh" content="{refresh_s:.0f}">\n',
        "TITLE": html.escape(", ".join(dict.fromkeys(summary.name for _, summary in runs))),
        "SUMMARY": _summary(runs, columns),
        "FIGURES": "\n".join(_section(figure) for figure in figures),
        "DATA": _data(figures),
        "PLOTLY": get_plotlyjs(),
    }
    text = TEMPLATE.read_text(encoding="utf-8")
    for name, value in parts.items():
        text = text.replace(f"<!--{name}-->", value)
    return text


def _data(figures: list[Figure]) -> str:
    """The plots as JSON that may stand in a script element."""
    plots = [{"id": figure.name, "data": figure.data, "layout": figure.layout} for figure in figures]
    return json.dumps(plots, allow_nan=False).replace("</", "<\\/")


def _section(figure: Figure) -> str:
    name, title, definition = (html.escape(text) for text in (figure.name, figure.title, figure.definition))
    plot = f'<div class="wide"><div class="plot" id="{name}"></div></div>'
    return f"<section><h2>{title}</h2>{plot}<p>{definition}</p></section>"


def _summary(runs: Runs, columns: Sequence[str]) -> str:
    """A table with a row a run, or a column a run if that is the narrower, and under it what the marks in it mean."""
    found, notes = overview(runs, columns)
    rows = [[heading, *cells] for heading, cells in found.items()]
    if len(found) <= max(len(runs), FEW_COLUMNS):
        rows = [list(row) for row in zip(*rows, strict=True)]
    cells = [[html.escape(cell) for cell in row] for row in rows]
    table = "<tr>" + "".join(f"<th>{cell}</th>" for cell in cells[0]) + "</tr>"
    table += "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in cells[1:])
    labels = [f"* {label}" for label in dict.fromkeys(label for _, summary in runs for label in summary.labels)]
    every = [*labels, *notes, *notes_of([run for run, _ in runs])]
    told = "".join(f"<p class='warning'>{html.escape(note)}</p>" for note in every)
    return f"<div class='wide'><table>{table}</table></div>{told}"
