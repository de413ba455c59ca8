"""One page that needs nothing else: no network, no server; light or dark as the reader's system is."""

import html
import json
from collections.abc import Sequence
from pathlib import Path

from hpcopt.errors import MetricsError
from hpcopt.report.figure import Figure

TEMPLATE = Path(__file__).with_name("page.html")


def page_of(title: str, body: str, figures: Sequence[Figure], style: str = "", refresh_s: float | None = None) -> str:
    """The whole page; it loads itself again every ``refresh_s``.

    Args:
        title: plain text.
        body: HTML, which has the ``section_of`` each figure.
        figures: all that are drawn.
        style: CSS beside the page's own, which has the colours as variables: ``--paper``, ``--ink``, ``--faint``,
            ``--line``, ``--panel``, ``--warning``.

    Raises:
        MetricsError: there are figures, and plotly is not installed.
    """
    parts = {
        "REFRESH": "" if refresh_s is None else f'<meta http-equiv="refresh" content="{refresh_s:.0f}">\n',
        "TITLE": html.escape(title),
        "STYLE": style,
        "BODY": body,
        "DATA": _data(figures),
        "PLOTLY": _plotly() if figures else "",
    }
    text = TEMPLATE.read_text(encoding="utf-8")
    for name, value in parts.items():
        text = text.replace(f"<!--{name}-->", value)
    return text


def section_of(figure: Figure) -> str:
    """Where a figure is drawn, under its title; who cannot see it is told what it shows."""
    name, title, definition = (html.escape(text) for text in (figure.name, figure.title, figure.definition))
    plot = f'<div class="plot" id="{name}" role="img" aria-label="{title}. {definition}"></div>'
    return f'<section><h2>{title}</h2><div class="wide">{plot}</div><p>{definition}</p></section>'


def table_of(rows: Sequence[Sequence[str]]) -> str:
    """A table of plain texts, the first row its headings, which scrolls where it is wider than the page."""
    cells = [[html.escape(cell) for cell in row] for row in rows]
    table = "<tr>" + "".join(f"<th>{cell}</th>" for cell in cells[0]) + "</tr>"
    table += "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in cells[1:])
    return f"<div class='wide'><table>{table}</table></div>"


def _data(figures: Sequence[Figure]) -> str:
    """The plots as JSON that may stand in a script element."""
    plots = [{"id": figure.name, "data": figure.data, "layout": figure.layout} for figure in figures]
    return json.dumps(plots, allow_nan=False).replace("</", "<\\/")


def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as cause:
        raise MetricsError("plots need plotly: `pip install plotly`, or the extra `report`") from cause
    return str(get_plotlyjs())
