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
        self._numbers.update(numbers)

    def take(self) -> dict[str, Any]:
        """All of them; then begin anew."""
        numbers, self._numbers = self._numbers, {}
        return numbers

    def stats(self, ranks: int, exchanges: Sequence[Exchange]) -> StepStats:
        """All of them, with what exchanges tell, on one of so many ranks; then begin anew.

        Raises:
            MetricsError: something is no number.
        """
        numbers = self.take()
        loss, rate = numbers.pop("loss", None), numbers.pop("learning_rate", None)
        scalars: dict[str, Scalar | float] = {name: scalar(name, x) for name, x in numbers.items()}
        tables: dict[str, Table] = {}
        for exchange in exchanges:
            scalars |= {name: scalar(name, x) for name, x in exchange.metrics().items()}
            tables |= {} if exchange.choices is None else {"choices": exchange.choices}
        rate = rate.value if isinstance(rate, Scalar) else rate
        return StepStats(share(loss, ranks), None if rate is None else number("learning_rate", rate), scalars, tables)


def share(loss: Any, ranks: int) -> float | None:
    """This rank's summand of the mean loss, of one of so many ranks; of None, None.

    Raises:
        MetricsError: it is no number, or put together otherwise than a loss can be.
    """
    if not isinstance(loss, Scalar):
        return None if loss is None else number("loss", loss) / ranks
    if loss.over not in ("mean", "sum"):
        raise MetricsError(f'log(loss=...) over "{loss.over}": a loss is a mean or a sum over the ranks')
    return number("loss", loss.value) / (ranks if loss.over == "mean" else 1)


def scalar(name: str, x: Any) -> Scalar | float:
    """A number, or a ``Scalar`` of one, with a float in the place of a tensor."""
    return Scalar(number(name, x.value), x.over) if isinstance(x, Scalar) else number(name, x)


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
