"""Signals that mean: leave soon. A handler only notes them; the ranks agree on a step at which to act."""

import signal
from types import FrameType

# SLURM sends CONT before its warnings; its default action is harmless, but it must not end up in somebody's handler.
IGNORED = ("SIGCONT",)


class StopSignals:
    """While entered, notes TERM, USR1 and what else it listens for instead of dying of them.

    Attributes:
        received: name of the first one that came, or None.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._before: dict[str, object] = {}

    def __enter__(self) -> "StopSignals":
        for name in IGNORED:
            self._before[name] = signal.signal(signal.Signals[name], signal.SIG_IGN)
        self.listen_for("TERM")
        self.listen_for("USR1")
        return self

    def listen_for(self, name: str) -> None:
        """Note this signal too, named as in ``USR2``."""
        if f"SIG{name}" not in self._before:
            self._before[f"SIG{name}"] = signal.signal(signal.Signals[f"SIG{name}"], self._note)

    def __exit__(self, *_: object) -> None:
        for name, handler in self._before.items():
            signal.signal(signal.Signals[name], handler)  # type: ignore[arg-type]

    def _note(self, number: int, _: FrameType | None) -> None:
        self.received = self.received or signal.Signals(number).name
