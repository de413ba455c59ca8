"""What a program asked of a device, line by line of ours."""

import sys
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import hpcopt

HOUSE = str(Path(hpcopt.__file__).parent)
KINDS = ("launches", "waits", "copies", "pageable")


@dataclass
class Ledger:
    """Counts by ``operation at file:line`` of the innermost line of hpcopt; "elsewhere" where there is none.

    Attributes:
        refused: what CUDA would refuse. It is written down and the program goes on, so that one run finds all.
        launches: operations that start a kernel.
        waits: those for which the host waits until the device has come so far.
        copies: those between main memory and the device.
        pageable: copies whose main memory is not page-locked: two copies each, for which the host waits.
    """

    refused: Counter[str] = field(default_factory=Counter)
    launches: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)
    copies: Counter[str] = field(default_factory=Counter)
    pageable: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, kind: str, operation: str) -> None:
        """Count one."""
        counter, key = getattr(self, kind), f"{operation} at {_line()}"
        with self._lock:
            counter[key] += 1

    def clear(self) -> None:
        """Begin anew, but for what was refused."""
        with self._lock:
            for kind in KINDS:
                getattr(self, kind).clear()

    def totals(self) -> dict[str, int]:
        """How many of each."""
        return {kind: getattr(self, kind).total() for kind in KINDS}


LEDGER = Ledger()


def _line() -> str:
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(HOUSE):
            return f"{name[len(HOUSE) + 1 :]}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"
