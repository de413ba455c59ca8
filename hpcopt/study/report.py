"""hpcopt study report STUDY: what came of a study, in the terminal, as a page, as pictures and tables."""

import argparse
import csv
import html
import io
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table as Grid

from hpcopt.errors import EXIT_DONE, HpcoptError
from hpcopt.report import pictures
from hpcopt.report.attributes import printable
from hpcopt.report.figure import write_tables
from hpcopt.report.output import STDOUT, write_out
from hpcopt.report.page import page_of, section_of, table_of
from hpcopt.study.folder import read_study
from hpcopt.study.measures import readable
from hpcopt.study.table import FAILED, LEFT, Table
from hpcopt.study.view import View

LOG_WIDTH = 160

EPILOG = """\
examples:
  hpcopt study report studies/rates
  hpcopt study report studies/altmin --value "error<1e-6" --x n --y k --html altmin.html
  hpcopt study report studies/altmin --value error,steps --where k=5 --csv altmin.csv
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="hpcopt study report",
        description="Show what came of a study, which may still be going on: medians and quartiles over seeds.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("study", type=Path, metavar="STUDY", help="folder of a study, or its table.h5")
    p.add_argument("--value", metavar="NAMES", help='results, separated by commas; "error<1e-6" asks how often')
    p.add_argument("--x", metavar="AXIS", help="of plots, from left to right (default: the one with the most numbers)")
    p.add_argument("--y", metavar="AXIS", help="of phase diagrams, from below (default: the one with the next most)")
    p.add_argument(
        "--where", action="append", default=[], metavar="AXIS=VALUE", help="show the points alone that have this value"
    )
    p.add_argument("--html", type=Path, metavar="FILE", help="write one page with all plots that needs nothing else")
    p.add_argument("--png", type=Path, metavar="DIR", help="write each plot as a picture")
    p.add_argument("--tables", type=Path, metavar="DIR", help="write the table behind each plot as CSV")
    p.add_argument("--csv", nargs="?", const=STDOUT, type=Path, metavar="FILE", help="write a row a point")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Report on a study; returns the exit code."""
    options = parser().parse_args(arguments)
    try:
        table = read_study(options.study)
        view = View(table, options)
        if not write_files(view, options):
            width = None if sys.stdout.isatty() else LOG_WIDTH
            console = Console(highlight=False, markup=False, emoji=False, width=width)
            console.print(title_of(table), style="bold")
            for caption, rows in view.as_tables(console.width):
                console.print(printable(caption), in_terminal(rows), sep="\n")
            for line in failures(table):
                console.print(line, style="yellow")
    except HpcoptError as error:
        print(f"hpcopt study report: {printable(str(error))}", file=sys.stderr)
        return error.exit_code
    return EXIT_DONE


def write_files(view: View, options: argparse.Namespace) -> bool:
    """Write what the command line asks for; whether it asks for anything."""
    figures = view.figures() if options.html or options.png or options.tables else []
    if options.html:
        title = title_of(view.table)
        body = [f"<h1>{html.escape(title)}</h1>"]
        for caption, rows in view.as_tables():
            body.append(f"<section><h2>{html.escape(caption)}</h2>{table_of(rows)}</section>")
        write_out(options.html, page_of(title, "\n".join([*body, *map(section_of, figures)]), figures))
    if options.png:
        pictures.write(figures, options.png)
    if options.tables:
        write_tables(figures, options.tables)
    if options.csv:
        write_out(options.csv, as_csv(view.table, view.rows))
    return any((options.html, options.png, options.tables, options.csv))


def title_of(table: Table) -> str:
    """The study in a line."""
    left, failed = (int((table.status == status).sum()) for status in (LEFT, FAILED))
    parts = [f"{len(table):,} points"] + [f"{left:,} left"] * (left > 0) + [f"{failed:,} failed"] * (failed > 0)
    return f"{printable(str(table.attributes.get('title', 'study')))}: {', '.join(parts)}"


def failures(table: Table, most: int = 3) -> list[str]:
    """Why points failed: the most frequent reasons."""
    reasons, counts = np.unique([m for m in table.message.tolist() if m] or [""], return_counts=True)
    order = np.argsort(-counts)[:most]
    return [f"{counts[i]:,} failed: {printable(reasons[i])}" for i in order if reasons[i]]


def in_terminal(rows: Sequence[Sequence[str]]) -> Grid:
    """Rows as a table, the first its headings."""
    grid = Grid(box=None, header_style="bold", padding=(0, 1))
    for heading in rows[0]:
        grid.add_column(printable(heading), justify="right", overflow="fold")
    for row in rows[1:]:
        grid.add_row(*map(printable, row))
    return grid


def as_csv(table: Table, rows: np.ndarray) -> str:
    """A row a point."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    columns = {
        **table.axes,
        "status": table.status,
        "seconds": table.seconds,
        **table.results,
        "message": table.message,
    }
    writer.writerow(columns)
    writer.writerows(zip(*(map(readable, column[rows].tolist()) for column in columns.values()), strict=True))
    return out.getvalue()
