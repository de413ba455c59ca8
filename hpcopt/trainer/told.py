"""What a step of somebody's own loop tells of itself, on its way to the records."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from hpcopt.errors import MetricsError
from hpcopt.exchange import Exchange
from hpcopt.shapes.stats import Scalar, StepStats, Table


class Told:
    """Numbers by name, of the step under way."""

    def __init__(self) -> None:
        self._numbers: dict[str, Any] = {}

    def __bool__(self) -> bool:
        return bool(self._numbers)

    def add(self, numbers: Mapping[str, Any]) -> None:
        """Take numbers; a tensor is read at the end of the step."""
        self._numbers.update({name: x.detach() if isinstance(x, Tensor) else x for name, x in numbers.items()})

    def stats(self, ranks: int, exchanges: Sequence[Exchange]) -> StepStats:
        """All of them, with what exchanges tell, on one of so many ranks; then begin anew.

        Raises:
            MetricsError: something is no number.
        """
        scalars = {name: scalar(name, x) for name, x in self._numbers.items()}
        self._numbers = {}
        loss, rate = scalars.pop("loss", None), scalars.pop("learning_rate", None)
        if loss is not None and loss.over not in ("mean", "sum"):
            raise MetricsError(f'log(loss=...) over "{loss.over}": a loss is a mean or a sum over the ranks')
        tables: dict[str, Table] = {}
        for exchange in exchanges:
            scalars |= {name: scalar(name, x) for name, x in exchange.metrics().items()}
            tables |= {} if exchange.choices is None else {"choices": exchange.choices}
        share = None if loss is None else loss.value / (ranks if loss.over == "mean" else 1)
        return StepStats(share, None if rate is None else rate.value, scalars, tables)


def scalar(name: str, x: Any) -> Scalar:
    """A number, or a ``Scalar`` of one, as a ``Scalar`` of a float."""
    return Scalar(number(name, x.value), x.over) if isinstance(x, Scalar) else Scalar(number(name, x))


def number(name: str, x: Any) -> float:
    """A float.

    Raises:
        MetricsError: it is none.
    """
    try:
        return float(x.item() if isinstance(x, Tensor) else x)
    except (TypeError, ValueError, RuntimeError):
        what = f"a tensor of shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
        raise MetricsError(f"`{name}` is no number but {what}") from None
