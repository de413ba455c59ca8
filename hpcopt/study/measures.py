"""What is asked of a table: the median of a result, or how often it is below or above a bound, group by group."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpcopt.errors import DataError
from hpcopt.study.grid import SEED, identity
from hpcopt.study.table import DONE, FAILED, Table

Z = 1.96  # standard errors of an interval of 95 %


@dataclass(frozen=True)
class Measure:
    """A result's name, and for a rate the bound: "error" or "error<1e-6".

    Attributes:
        name: of the result, or "seconds".
        relation: "<" or ">" of a rate; "" where the value itself is asked for.
        bound: of a rate.
    """

    name: str
    relation: str = ""
    bound: float = math.nan

    @classmethod
    def of(cls, text: str) -> "Measure":
        """Read it.

        Raises:
            ValueError: the bound is no number.
        """
        parts = re.fullmatch(r"([^<>]+)([<>])([^<>]+)", text)
        return cls(parts[1].strip(), parts[2], float(parts[3])) if parts else cls(text.strip())

    def __str__(self) -> str:
        return f"{self.name} {self.relation} {self.bound:g}" if self.relation else self.name

    def values(self, table: Table) -> np.ndarray:
        """Of each point, (N,): the value, or 1 and 0 for a rate; NaN where it is not known. A point that failed is
        none of the rate, and a value that is not finite is neither below nor above.

        Raises:
            DataError: there is no such result.
        """
        columns = {**table.results, "seconds": table.seconds}
        if self.name not in columns:
            raise DataError(f"the study has no result {self.name}; it has {', '.join(columns)}")
        values = columns[self.name]
        if not self.relation:
            return np.where(table.status == DONE, values, np.nan)
        with np.errstate(invalid="ignore"):
            holds = np.isfinite(values) & (values < self.bound if self.relation == "<" else values > self.bound)
        return np.where((table.status == DONE) | (table.status == FAILED), holds.astype(float), np.nan)

    def spread(self, values: np.ndarray) -> tuple[float, float, float]:
        """Lower end, middle and upper end of what is known of values: quartiles and median; of a rate Wilson's
        interval of 95 % (JASA 22, 1927) and the share. NaN where nothing is known.
        """
        known = values[~np.isnan(values)]
        if not len(known):
            return math.nan, math.nan, math.nan
        if not self.relation:
            low, middle, high = (_quantile(np.sort(known).tolist(), share) for share in (0.25, 0.5, 0.75))
            return low, middle, high
        n, p = len(known), float(known.mean())
        centre, half = p + Z * Z / (2 * n), Z * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
        return (centre - half) / (1 + Z * Z / n), p, (centre + half) / (1 + Z * Z / n)


def chosen(table: Table, where: Mapping[str, Any]) -> np.ndarray:
    """Numbers of the points that have these values on their axes.

    Raises:
        DataError: there is no such axis, or no such point.
    """
    rows = np.arange(len(table))
    for key, value in where.items():
        require_axis(table, key)
        same = np.array([identity(v) == identity(value) for v in table.axes[key][rows].tolist()], bool)
        if not same.any():
            there = ", ".join(map(str, values_of(table, key, rows)))
            raise DataError(f"no point has {key} = {value}; there are {there}")
        rows = rows[same]
    return rows


def require_axis(table: Table, key: str) -> None:
    """Raise DataError if there is no such axis."""
    if key not in table.axes:
        raise DataError(f"the study has no axis {key}; it has {', '.join(table.axes)}")


def readable(value: Any) -> Any:
    """A value as it stands in a table: numbers and texts as they are, anything else as JSON."""
    return value if isinstance(value, int | float | str) and not isinstance(value, bool) else json.dumps(value)


def values_of(table: Table, key: str, rows: np.ndarray) -> list[Any]:
    """Different values of an axis, readable: numbers rising, others as they come."""
    found = dict.fromkeys(map(readable, table.axes[key][rows].tolist()))
    return sorted(found) if table.axes[key].dtype.kind in "if" else list(found)


def varying(table: Table, rows: np.ndarray) -> list[str]:
    """Axes with more than one value, but for the seed."""
    return [key for key in table.axes if key != SEED and len(values_of(table, key, rows)) > 1]


def grouped(table: Table, keys: Sequence[str], rows: np.ndarray) -> dict[tuple[Any, ...], np.ndarray]:
    """Numbers of the points by their values of some axes, readable and in the order of ``values_of``; groups without
    points are left out.
    """
    order = [{value: place for place, value in enumerate(values_of(table, key, rows))} for key in keys]
    columns = [list(map(readable, table.axes[key].tolist())) for key in keys]
    groups: dict[tuple[Any, ...], list[int]] = {}
    for row in rows.tolist():
        groups.setdefault(tuple(column[row] for column in columns), []).append(row)
    ranked = sorted(groups, key=lambda values: [place[v] for place, v in zip(order, values, strict=True)])
    return {values: np.array(groups[values]) for values in ranked}


def _quantile(rising: Sequence[float], share: float) -> float:
    """Linear between two values, as numpy's; but among infinite ones that number, where numpy's is NaN."""
    place = share * (len(rising) - 1)
    below, above = rising[math.floor(place)], rising[math.ceil(place)]
    return below if below == above else below + (above - below) * (place % 1)
