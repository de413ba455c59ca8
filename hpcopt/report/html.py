"""The report as one page that needs nothing else: no network, no server; light or dark as the reader's system is."""

import html
import json
from pathlib import Path

from hpcopt.errors import MetricsError
from hpcopt.report.figure import Figure, names_of
from hpcopt.report.summary import Runs, Summary, differing_settings, notes_of
from hpcopt.report.terminal import duration, fraction, size

TEMPLATE = Path(__file__).with_name("page.html")


def page(runs: Runs, figures: list[Figure]) -> str:
    """The whole page.

    Raises:
        MetricsError: plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as cause:
        raise MetricsError("plots need plotly: `pip install plotly`, or the extra `report`") from cause
    parts = {
        "TITLE": html.escape(", ".join(dict.fromkeys(summary.name for _, summary in runs))),
        "SUMMARY": _summary(runs),
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
    return f'<section><h2>{title}</h2><div class="plot" id="{name}"></div><p>{definition}</p></section>'


def _summary(runs: Runs) -> str:
    """A table with a row a run, and under it what the marks in it mean."""
    settings = differing_settings([run for run, _ in runs])
    scores = list(dict.fromkeys(name for _, summary in runs for name in summary.scores))
    figures = ("state", "ranks", "hosts", "steps", "time", "step", "samples/s", "sent a step", "of dense", "loss")
    headings = ["run", *(key for key in settings if key != "ranks"), *figures, *scores]
    rows = []
    for index, ((_, summary), name) in enumerate(zip(runs, names_of([run for run, _ in runs]), strict=True)):
        values = [each[index] for key, each in settings.items() if key != "ranks"]
        rows.append([name, *values, *_figures(summary), *(_score(summary, score) for score in scores)])
    table = "<tr>" + "".join(f"<th>{html.escape(heading)}</th>" for heading in headings) + "</tr>"
    table += "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    labels = dict.fromkeys(label for _, summary in runs for label in summary.labels)
    guesses = "".join(f"<p>{html.escape(line)}</p>" for line in notes_of([run for run, _ in runs]))
    notes = "".join(f"<p class='warning'>* {html.escape(label)}</p>" for label in labels)
    return f"<div class='wide'><table>{table}</table></div>{notes}{guesses}"


def _figures(s: Summary) -> list[str]:
    state = s.state + ("*" if s.labels else "") + (f", {s.restarts} restarts" if s.restarts else "")
    where = [str(s.ranks), str(len(s.hosts)), f"{s.steps:,}", duration(s.elapsed_s), duration(s.step_s)]
    return [
        state,
        *where,
        f"{s.samples_per_s:,.0f}",
        size(s.sent_bytes),
        fraction(s.sent_bytes, s.dense_bytes),
        f"{s.loss:.4g}",
    ]


def _score(summary: Summary, name: str) -> str:
    return f"{summary.scores[name]:.4f}" if name in summary.scores else ""
