"""The points of a grid: one value of each axis, and a seed."""

import copy
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hpcopt.errors import JobError

SEED = "seed"  # the column, and the key that a function finds it under
OWN_COLUMNS = ("status", "seconds", "message")  # of the table, beside axes and results
MOST_POINTS = 1_000_000
Axis = Mapping[str, Sequence[Any]]  # keys that go together, value by value: all lists are of one length
Point = dict[str, Any]  # a value by key


def axes_of(tables: Sequence[Mapping[str, Any]]) -> list[Axis]:
    """Axes as a study file has them, with a dotted key for each list.

    Raises:
        JobError: a list is empty, something else or has a value twice, lists that go together are of different lengths,
            or a key is there twice.
    """
    axes: list[Axis] = []
    for number, table in enumerate(tables, 1):
        axis = dict(_lists(table, ()))
        if not axis:
            raise JobError(f"axis {number} has no key: write [[axes]] and below it key = [value, value]")
        lengths = {key: len(values) for key, values in axis.items()}
        if len(set(lengths.values())) > 1:
            said = ", ".join(f"{key} has {length}" for key, length in lengths.items())
            raise JobError(
                f"keys of one axis go together, value by value, but {said}: give each an [[axes]] of its own"
            )
        rows = [tuple(map(identity, row)) for row in zip(*axis.values(), strict=True)]
        if len(set(rows)) < len(rows):
            twice = next(row for row in rows if rows.count(row) > 1)
            raise JobError(f"the axis {', '.join(axis)} has {', '.join(map(str, twice))} twice")
        axes.append(axis)
    _require_apart([key for axis in axes for key in axis])
    return axes


def points_of(axes: Sequence[Axis], seeds: Sequence[int]) -> Iterator[Point]:
    """All points, the last axis and then the seeds the fastest; without seeds a point has none."""
    rows = [[dict(zip(axis, values, strict=True)) for values in zip(*axis.values(), strict=True)] for axis in axes]
    if seeds:
        rows.append([{SEED: seed} for seed in seeds])
    for parts in itertools.product(*rows):
        yield {key: value for part in parts for key, value in part.items()}


def count(axes: Sequence[Axis], seeds: Sequence[int]) -> int:
    """How many points there are.

    Raises:
        JobError: none, or too many.
    """
    if not axes and not seeds:
        raise JobError("the study has no point: give it [[axes]], or [study] seeds")
    points = math.prod(len(next(iter(axis.values()))) for axis in axes) * max(1, len(seeds))
    if points > MOST_POINTS:
        raise JobError(f"the study has {points:,} points, and at most {MOST_POINTS:,} fit into one")
    return points


def filled(base: Mapping[str, Any], point: Point) -> dict[str, Any]:
    """What a function is given: the base, a copy, with the point's values in it by their dotted keys.

    Raises:
        JobError: a key lies in one of the base that has no keys.
    """
    whole: dict[str, Any] = copy.deepcopy(dict(base))
    for key, value in point.items():
        *way, name = key.split(".")
        section = whole
        for part in way:
            section = section.setdefault(part, {})
            if not isinstance(section, dict):
                raise JobError(f"the axis {key} lies in {part} of [base], which is {section!r} and no table")
        section[name] = copy.deepcopy(value)
    return whole


def identity(value: Any) -> Any:
    """What makes a value the same as another: a number's value, the text of anything else."""
    if is_number(value):
        return value
    return f'"{value}"' if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)


def is_number(value: Any) -> bool:
    """Whether it is one, and neither true nor false."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def usable(name: str) -> bool:
    """Whether a column of the table can be called that."""
    return name.isprintable() and "/" not in name and name not in ("", ".", *OWN_COLUMNS)


def label(point: Point) -> str:
    """A point for a person."""
    return ", ".join(f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in point.items())


def _lists(table: Mapping[str, Any], way: tuple[str, ...]) -> Iterator[tuple[str, Sequence[Any]]]:
    for name, values in table.items():
        key = ".".join((*way, name))
        if isinstance(values, Mapping):
            yield from _lists(values, (*way, name))
        elif not isinstance(values, list):
            raise JobError(f"the axis {key} = {values!r} is no list of values: write {key} = [...]")
        elif not values:
            raise JobError(f"the axis {key} has no value")
        else:
            for value in values:
                _require_plain(key, value)
            yield key, values


def _require_plain(key: str, value: Any) -> None:
    if isinstance(value, list | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            _require_plain(key, inner)
    elif not _is_plain(value):
        raise JobError(
            f"the axis {key} has {value!r}: values are finite numbers, whole ones of 64 bits, texts without NUL, true "
            "and false, lists and tables"
        )


def _is_plain(value: Any) -> bool:
    """Whether the table can hold a value that is no list and no table."""
    match value:
        case str():
            return "\0" not in value and value.encode("utf-8", "ignore").decode() == value  # no half of a pair
        case float():
            return math.isfinite(value)
        case int():
            return -(2**63) <= value < 2**63
        case _:
            return False


def _require_apart(keys: Sequence[str]) -> None:
    """Raise JobError for a key that is there twice, or lies in another."""
    for one, other in itertools.combinations(keys, 2):
        if one == other:
            raise JobError(f"the key {one} is on two axes")
        if f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}."):
            raise JobError(f"the keys {one} and {other} are on two axes, and one is a part of the other")
    for key in keys:
        if key in (SEED, "run.seed"):
            raise JobError(f"the key {key} is on an axis: write [study] seeds instead")
        if not usable(key):
            raise JobError(f'the axis "{key}" cannot be called that: the table has the name for something else')
