"""A timeline of every bucket, as chrome://tracing and Perfetto read it: one file a rank, one event a line.

The array is left open at its end, which the format allows: a run that is killed leaves a file that can be read.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Trace:
    """Appends events to ``trace-RANK.json`` in a folder, or does nothing without one."""

    def __init__(self, folder: Path | None, rank: int) -> None:
        self._rank = rank
        self._file = None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = (folder / f"trace-{rank}.json").open("w", buffering=1, encoding="utf-8")
            self._file.write("[\n")

    @contextmanager
    def __call__(self, what: str, lane: str, **details: float) -> Iterator[None]:
        """Record the body as one event in a lane of its own."""
        start_us = time.time_ns() // 1000
        try:
            yield
        finally:
            if self._file is not None:
                event = {"name": what, "ph": "X", "ts": start_us, "dur": time.time_ns() // 1000 - start_us}
                self._file.write(json.dumps(event | {"pid": self._rank, "tid": lane, "args": details}) + ",\n")
