"""Rank 0 speaks: a live bar on a terminal, plain lines in a log. A batch log never sees a carriage return."""

import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Self, TextIO

from hpcopt.comm.launch import launch_from
from hpcopt.store.files import open_to_append
from hpcopt.store.hung import touching
from hpcopt.store.room import unwritten

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress


class Progress:
    """Says how a run goes, on standard output and in the run's log.txt. On other ranks than 0 it says nothing."""

    def __init__(self, log: Path, *, speaks: bool, every_s: float) -> None:
        self._speaks, self._every_s, self._total = speaks, every_s, 0
        self._log: TextIO | None = open_to_append(log) if speaks else None
        self._path, self._unwritten, self._told = log, b"", False  # of the log
        self._bar: RichProgress | None = None
        self._start_s = self._last_s = time.monotonic()
        self._first_step: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def say(self, text: str) -> None:
        """Print a line now, and log it with the time."""
        if not self._speaks:
            return
        stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        for line in text.splitlines():
            self._note(f"{stamp} {line}")
            if self._bar is not None:
                self._bar.console.print(line, highlight=False, soft_wrap=True)
            else:
                print(f"{stamp} {line}", flush=True)

    def begin(self, total: int) -> None:
        """Count steps from here on, of so many."""
        self._total = total
        self._start_s = self._last_s = time.monotonic()
        self.say(f"{total} steps")
        # A launcher may give its ranks a terminal that is none: Open MPI's mpirun does, even into a file.
        if self._speaks and sys.stdout.isatty() and launch_from().launcher == "none":
            self._bar = _live_bar(total)

    def step(self, done: int, loss: float | None, step_s: float, samples: int | None, exchange_share: float) -> None:
        """Tell of a step, of so many samples if somebody knows; a log gets a line only every so many seconds."""
        if not self._speaks:
            return
        now_s = time.monotonic()
        if self._first_step is None:  # it may have paid for what the others find ready: no measure of them
            self._first_step, self._start_s = done, now_s
        due = now_s - self._last_s >= self._every_s or done >= self._total
        if self._bar is None and not due:
            return
        loss_text = "-" if loss is None else f"{loss:.4g}"
        unit, rate = ("samples", samples / step_s) if samples else ("steps", 1 / step_s)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, loss=loss_text, rate=f"{rate:,.0f} {unit}/s")
        if not due:
            return
        self._last_s = now_s
        steps, left = done - self._first_step, self._total - done
        eta = _duration((now_s - self._start_s) / max(1, steps) * left) if steps or not left else "?"
        line = (
            f"step={done}/{self._total} loss={loss_text} {unit}/s={rate:,.0f} exchange={exchange_share:.0%} eta={eta}"
        )
        if self._bar is None:
            self.say(line)

    def close(self) -> None:
        """Take the bar away and close the log."""
        if self._bar is not None:
            self._bar.stop()
        self._speaks = False
        if self._log is not None:
            self._write_log()
            self._log.close()
            self._log = None

    def _note(self, line: str) -> None:
        """Write to the log. On a disk without room for a line it waits in memory, and the run goes on."""
        if self._log is not None:
            self._unwritten += f"{line}\n".encode(errors="replace")
            self._write_log()

    def _write_log(self) -> None:
        assert self._log is not None
        try:
            with touching(self._path):
                while self._unwritten:
                    self._unwritten = self._unwritten[os.write(self._log.fileno(), self._unwritten) :]
            self._told = False
        except OSError as error:
            if not self._told:
                self._told = True
                print(
                    f"{unwritten(self._path, error, len(self._unwritten))}. Until then lines wait in memory", flush=True
                )


def _live_bar(total: int) -> "RichProgress":
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    bar = RichProgress(*columns)
    bar.add_task("training", total=total, loss="-", rate="-")
    bar.start()
    return bar


def _duration(seconds: float) -> str:
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}h{m:02}m" if hours else f"{m}m{s:02}s"
