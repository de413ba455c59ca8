"""Metrics whose rows wait in memory while they cannot be written, as on a full disk."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hpcopt.errors import MetricsError
from hpcopt.store.metrics import MetricsFile


class PatientMetrics(MetricsFile):
    """Writes in the order of the calls, each when it can; ``catch_up`` and ``finish`` insist."""

    def __init__(self, path: Path, require_ours: Callable[[], None], say: Callable[[str], None]) -> None:
        """As a ``MetricsFile``; ``say`` hears, once, that rows wait."""
        super().__init__(path, require_ours)
        self._say, self._told = say, False
        self._waiting: list[Callable[[], None]] = []

    def append_steps(
        self, columns: Mapping[str, np.ndarray], phase_s: np.ndarray, sent_bytes: np.ndarray, dense_bytes: np.ndarray
    ) -> None:
        self._write(partial(super().append_steps, columns, phase_s, sent_bytes, dense_bytes))

    def append_evaluation(
        self, step: int, time_s: float, scores: Mapping[str, float], better: Mapping[str, str] | None = None
    ) -> None:
        self._write(partial(super().append_evaluation, step, time_s, scores, better))

    def put_table(
        self,
        name: str,
        steps: Sequence[int] | np.ndarray,
        columns: Mapping[str, Any],
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        self._write(partial(super().put_table, name, steps, columns, attributes))

    def catch_up(self) -> None:
        while self._waiting:
            self._waiting[0]()
            del self._waiting[0]
        self._told = False

    def finish(self, *arguments: Any, **named: Any) -> None:
        self.catch_up()
        super().finish(*arguments, **named)

    def _write(self, row: Callable[[], None]) -> None:
        self._waiting.append(row)
        try:
            self.catch_up()
        except MetricsError as error:
            if not self._told:
                self._told = True
                self._say(f"warning: {error}. Until then the rows wait in memory")
