"""What of a study is shown: which points, which results, which axes; as plots, and as tables for a person."""

import argparse
import tomllib
from typing import Any

import numpy as np

from hpcopt.errors import DataError
from hpcopt.report.figure import Figure
from hpcopt.study.figures import curves, phase_diagrams
from hpcopt.study.measures import Measure, chosen, grouped, require_axis, values_of, varying
from hpcopt.study.table import LEFT, Table

MEASURES = 6  # shown where nobody says which
MOST_ROWS = 60  # of a table that is read from top to bottom; larger grids become a map
PADDING = 2  # of a cell in the terminal


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

    def as_tables(self, width: int | None = None) -> list[tuple[str, list[list[str]]]]:
        """For a person, each with a caption: medians and quartiles by all axes; of a large grid a map of each measure,
        which leaves columns out where it would be wider than ``width``, characters.
        """
        groups = grouped(self.table, self.axes, self.rows)
        if len(groups) <= MOST_ROWS or not (self.x and self.y):
            return [("medians and quartiles, or shares and their intervals", self._list(groups))]
        return [self._map(measure, self.x, self.y, width) for measure in self.measures]

    def _list(self, groups: dict[tuple[Any, ...], np.ndarray]) -> list[list[str]]:
        values = [measure.values(self.table) for measure in self.measures]
        found = [[*self.axes, "points", *map(str, self.measures)]]
        for place, members in groups.items():
            known = int((self.table.status[members] != LEFT).sum())
            cells = [_cell(m, own[members]) for m, own in zip(self.measures, values, strict=True)]
            found.append([*map(text, place), f"{known}", *cells])
        return found

    def _map(self, measure: Measure, x: str, y: str, width: int | None) -> tuple[str, list[list[str]]]:
        values, xs = measure.values(self.table), values_of(self.table, x, self.rows)
        cells = grouped(self.table, [x, y], self.rows)
        columns = [[f"{y} \\ {x}", *map(text, ys := values_of(self.table, y, self.rows)[::-1])]]
        for value in xs:
            own = [cells.get((value, other)) for other in ys]
            columns.append([text(value), *("" if o is None else text(measure.spread(values[o])[1], 2) for o in own)])
        widths = [max(map(len, column)) + PADDING for column in columns]
        fit = len(xs) if width is None else max(1, (width - widths[0]) // max(widths[1:]))
        every = -(-len(xs) // fit)
        what = "share" if measure.relation else "median"
        caption = f"{measure}: {what} by {x} and {y}" + f", one value of {x} in {every}" * (every > 1)
        return caption, [list(row) for row in zip(columns[0], *columns[1::every], strict=True)]


def _cell(measure: Measure, values: np.ndarray) -> str:
    low, middle, high = measure.spread(values)
    return f"{text(middle)} ({text(low)} to {text(high)})" if low < high else text(middle)


def text(value: Any, digits: int = 4) -> str:
    """A value in a cell."""
    return ("-" if np.isnan(value) else f"{value:.{digits}g}") if isinstance(value, float) else str(value)


def _where(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise DataError(f'--where "{text}": write AXIS=VALUE')
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key, value
