"""What a step tells of itself: a loss, scalars and tables, any of which may be missing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Literal, Protocol, SupportsFloat

import numpy as np

from hpcopt.comm.world import World
from hpcopt.shapes.late import Late

Over = Literal["sum", "mean", "max", "rank"]
Columns = Mapping[str, np.ndarray | Sequence[float] | Sequence[str]]


@dataclass(frozen=True)
class Scalar:
    """A rank's number of one step.

    Attributes:
        value: NaN is as if it were not given.
        over: how the ranks that give it are put together: their sum, their mean (exact where they agree), the largest,
            or the value of the lowest of these ranks.
    """

    value: float
    over: Over = "mean"


class Table(Protocol):
    """Rows beside those of the steps, of any number and with any columns of numbers or texts.

    Attributes:
        lasting: the rows tell of the whole start of the run and are asked for whenever metrics are written, in place of
            those of before; otherwise they are of the step that they came with.
    """

    @property
    def lasting(self) -> bool: ...

    def columns(self, world: World) -> Columns:
        """Give the columns by name, all of one length; rank 0's are written. Collective."""

    def attributes(self) -> Mapping[str, str]:
        """What the rows rest on."""

    def lines(self) -> Sequence[str]:
        """For a log, when the table first comes."""


@dataclass(frozen=True)
class Rows:
    """A table that is known at once: rank 0's rows of one step."""

    values: Columns
    lasting: bool = False

    def columns(self, world: World) -> Columns:
        return self.values

    def attributes(self) -> Mapping[str, str]:
        return {}

    def lines(self) -> Sequence[str]:
        return ()


@dataclass
class StepStats:
    """What one step did on this rank.

    Attributes:
        loss: this rank's summand of the global mean loss, a number or ``Late``; None if it has none. None on all ranks:
            nothing landed in this step.
        learning_rate: of this step; None if there is no such thing.
        scalars: further numbers by name. A name may come at some steps and on some ranks only. A plain number is
            ``Scalar(number)``, a mean.
        tables: further rows by name; the same names on all ranks.
    """

    loss: SupportsFloat | None
    learning_rate: float | None = None
    scalars: Mapping[str, Scalar | float] = field(default_factory=dict)
    tables: Mapping[str, Table] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise TypeError where it is made, if a field is of another kind."""
        for name, value in (("loss", self.loss), ("learning_rate", self.learning_rate)):
            if value is not None and not isinstance(value, (*_NUMBER, Late)):
                raise TypeError(f"StepStats: {name} is {value!r}")
        if not _named(self.scalars, (Scalar, *_NUMBER)):
            raise TypeError(f"StepStats: scalars is {self.scalars!r}")
        if not _named(self.tables, object) or not all(map(_is_table, self.tables.values())):
            raise TypeError(f"StepStats: tables is {self.tables!r}")


_NUMBER, _MAPPING = (float, Real), (dict, Mapping)  # the usual first: a protocol takes far longer to ask


def _is_table(thing: object) -> bool:
    return all(hasattr(thing, name) for name in ("lasting", "columns", "attributes", "lines"))


def _named(things: Mapping[str, object], kind: type | tuple[type, ...]) -> bool:
    """Whether these are things of a kind by name."""
    if not isinstance(things, _MAPPING):
        return False
    return not things or all(isinstance(name, str) and isinstance(thing, kind) for name, thing in things.items())
