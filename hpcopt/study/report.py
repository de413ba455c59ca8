"""hpcopt study report STUDY: what came of a study, in the terminal, as a page, as pictures and tables."""

import argparse
import csv
import io
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table as Grid

from hpcopt.errors import EXIT_DONE, DataError, HpcoptError
from hpcopt.report import pictures
from hpcopt.report.attributes import printable
from hpcopt.report.figure import Figure, write_tables
from hpcopt.report.output import STDOUT, write_out
from hpcopt.report.page import page_of, section_of, table_of
from hpcopt.study.figures import curves, phase_diagrams
from hpcopt.study.folder import read_study
from hpcopt.study.measures import Measure, chosen, grouped, readable, require_axis, values_of, varying
from hpcopt.study.table import FAILED, LEFT, Table

MEASURES = 6  # shown where nobody says which
MOST_ROWS = 60  # of a table that is read from top to bottom; larger grids become a map
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
            console.print(in_terminal(view.rows_for_a_person()))
            for line in failures(table):
                console.print(line, style="yellow")
    except HpcoptError as error:
        print(f"hpcopt study report: {printable(str(error))}", file=sys.stderr)
        return error.exit_code
    return EXIT_DONE


class View:
    """What of a table is shown, and how.

    Attributes:
        table: all of it.
        rows: numbers of the points that are shown.
        measures: what is asked of them.
        axes: those with several values, x and y first if they are any of these.
        x, y: of plots; None where there is no such axis.
    """

    def __init__(self, table: Table, options: argparse.Namespace) -> None:
        """Find it out.

        Raises:
            DataError: there is no such axis, value or result.
        """
        self.table = table
        self.rows = chosen(table, dict(map(_where, options.where)))
        self.axes = varying(table, self.rows)
        numeric = sorted(
            (key for key in self.axes if table.axes[key].dtype.kind in "if"),
            key=lambda key: -len(values_of(table, key, self.rows)),
        )
        for key in filter(None, (options.x, options.y)):
            require_axis(table, key)
        free = [key for key in numeric if key not in (options.x, options.y)]
        self.x = options.x or next(iter(free), None)
        self.y = options.y or next((key for key in free if key != self.x), None)
        names = options.value.split(",") if options.value else list(table.results)[:MEASURES] or ["seconds"]
        try:
            self.measures = [Measure.of(name) for name in names]
        except ValueError:
            raise DataError(f'--value "{options.value}": write results, or "error<1e-6" with a number') from None
        for measure in self.measures:
            measure.values(table)

    def figures(self) -> list[Figure]:
        """All plots."""
        found: list[Figure] = []
        for measure in self.measures:
            if self.x and self.y:
                rest = [key for key in self.axes if key not in (self.x, self.y)]
                found += phase_diagrams(self.table, measure, (self.x, self.y), rest, self.rows)
            if self.x:
                rest = [key for key in self.axes if key != self.x]
                found.append(curves(self.table, measure, self.x, rest, self.rows))
        return found

    def rows_for_a_person(self) -> list[list[str]]:
        """Medians and quartiles by all axes; of a large grid a map of the first measure."""
        groups = grouped(self.table, self.axes, self.rows)
        return self._map() if len(groups) > MOST_ROWS and self.x and self.y else self._list(groups)

    def _list(self, groups: dict[tuple[Any, ...], np.ndarray]) -> list[list[str]]:
        values = [measure.values(self.table) for measure in self.measures]
        found = [[*self.axes, "points", *map(str, self.measures)]]
        for place, members in groups.items():
            known = int((self.table.status[members] != LEFT).sum())
            cells = [_cell(m, own[members]) for m, own in zip(self.measures, values, strict=True)]
            found.append([*map(_text, place), f"{known}", *cells])
        return found

    def _map(self) -> list[list[str]]:
        assert self.x and self.y
        measure = self.measures[0]
        values, xs = measure.values(self.table), values_of(self.table, self.x, self.rows)
        cells = grouped(self.table, [self.x, self.y], self.rows)
        found = [[f"{measure}: {self.y} by {self.x}", *map(_text, xs)]]
        for y in reversed(values_of(self.table, self.y, self.rows)):
            own = [cells.get((x, y)) for x in xs]
            shown = ["" if rows is None else _text(measure.spread(values[rows])[1]) for rows in own]
            found.append([_text(y), *shown])
        return found


def write_files(view: View, options: argparse.Namespace) -> bool:
    """Write what the command line asks for; whether it asks for anything."""
    figures = view.figures() if options.html or options.png or options.tables else []
    if options.html:
        body = [f"<section>{table_of(view.rows_for_a_person())}</section>", *map(section_of, figures)]
        title = title_of(view.table)
        write_out(options.html, page_of(title, f"<h1>{title}</h1>" + "\n".join(body), figures))
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


def _cell(measure: Measure, values: np.ndarray) -> str:
    low, middle, high = measure.spread(values)
    return f"{_text(middle)} ({_text(low)} to {_text(high)})" if low < high else _text(middle)


def _text(value: Any) -> str:
    return ("-" if np.isnan(value) else f"{value:.4g}") if isinstance(value, float) else str(value)


def _where(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise DataError(f'--where "{text}": write AXIS=VALUE')
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key, value
