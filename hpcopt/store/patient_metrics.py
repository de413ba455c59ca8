"""Metrics whose rows wait in memory while they cannot be written, as on a full disk."""

from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from typing import Concatenate, ParamSpec

from hpcopt.errors import MetricsError
from hpcopt.store.metrics import MetricsFile

P = ParamSpec("P")


def _patiently(write: Callable[Concatenate[MetricsFile, P], None]) -> Callable[Concatenate["PatientMetrics", P], None]:
    """A method whose rows may wait."""

    @wraps(write)
    def written(self: "PatientMetrics", /, *arguments: P.args, **named: P.kwargs) -> None:
        self.write(partial(write, self, *arguments, **named))

    return written


class PatientMetrics(MetricsFile):
    """Writes in the order of the calls, each when it can; ``catch_up`` and ``finish`` insist."""

    def __init__(self, path: Path, require_ours: Callable[[], None], say: Callable[[str], None]) -> None:
        """As a ``MetricsFile``; ``say`` hears, once, that rows wait."""
        super().__init__(path, require_ours)
        self._say, self._told = say, False
        self._waiting: list[Callable[[], None]] = []

    append_steps = _patiently(MetricsFile.append_steps)
    append_evaluation = _patiently(MetricsFile.append_evaluation)
    put_table = _patiently(MetricsFile.put_table)

    def catch_up(self) -> None:
        while self._waiting:
            self._waiting[0]()
            del self._waiting[0]
        self._told = False

    def write(self, rows: Callable[[], None]) -> None:
        """Call what writes, after all that waits; on failure, it waits too."""
        self._waiting.append(rows)
        try:
            self.catch_up()
        except MetricsError as error:
            if not self._told:
                self._told = True
                self._say(f"warning: {error}. Until then the rows wait in memory")
