"""The report as one page."""

import html
from collections.abc import Sequence

from hpcopt.report.figure import Figure
from hpcopt.report.overview import overview
from hpcopt.report.page import page_of, section_of, table_of
from hpcopt.report.summary import Runs, notes_of

FEW_COLUMNS = 14  # of a table that fits a page
TIMES = """<section><p>Times of a step are medians over warm steps: the first ten after a start are left out if there
are more than twenty. A step takes as long as its slowest rank; evaluations and checkpoints beside it are not part of
it. Bytes are those handed to the transport.</p></section>"""


def page(runs: Runs, figures: list[Figure], columns: Sequence[str] = (), refresh_s: float | None = None) -> str:
    """The whole page; ``columns`` of the table of runs, if not all. It loads itself again every ``refresh_s``.

    Raises:
        MetricsError: plotly is not installed.
    """
    title = ", ".join(dict.fromkeys(summary.name for _, summary in runs))
    body = "\n".join([_summary(runs, columns), *map(section_of, figures), TIMES])
    return page_of(title, body, figures, refresh_s=refresh_s)


def _summary(runs: Runs, columns: Sequence[str]) -> str:
    """A table with a row a run, or a column a run if that is the narrower, and under it what the marks in it mean."""
    found, notes = overview(runs, columns)
    rows = [[heading, *cells] for heading, cells in found.items()]
    if len(found) <= max(len(runs), FEW_COLUMNS):
        rows = [list(row) for row in zip(*rows, strict=True)]
    labels = [f"* {label}" for label in dict.fromkeys(label for _, summary in runs for label in summary.labels)]
    every = [*labels, *notes, *notes_of([run for run, _ in runs])]
    told = "".join(f"<p class='warning'>{html.escape(note)}</p>" for note in every)
    return f"{table_of(rows)}{told}"
