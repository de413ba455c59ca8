"""How a rank leaves a job: with the others, or so that none waits for it for ever.

MPI does not notice that one rank's program has failed: the others wait for it in their next collective. So from the
first ``connect`` on

- an exception that nobody catches, Ctrl-C, and ``sys.exit`` with a code end all ranks at once, with that rank's
  traceback and exit code, as under ``python -m mpi4py``;
- a rank that comes to the end of its program closes its worlds, which waits for the others. If they in turn wait for it
  in a collective, which it will never enter, the stall watch says who is where and ends the job.

A job of one rank, an interactive session and processes forked from a rank are left alone.
"""

import atexit
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from secrets import token_hex
from types import TracebackType
from typing import Any, NoReturn, Protocol

from hpcopt.comm.launch import leave_exit_code
from hpcopt.comm.stall import StallWatch, Watch
from hpcopt.comm.transport import Transport
from hpcopt.errors import EXIT_BUG, EXIT_PEER, exit_code_of


class Company(Protocol):
    """What is asked of a ``World``."""

    transport: Transport
    rank: int
    hosts: list[str]
    nodes: int
    watch: Watch
    closed: bool

    def gather_text(self, text: str) -> list[str]: ...
    def close(self) -> None: ...


_departure: "Departure | None" = None  # of this process, once it is a rank among others


def watch_over(world: Company, stall_s: float) -> None:
    """See to it that this rank does not leave the others waiting in a world of all ranks, and that who is missing from
    its collectives is named. Collective.

    Args:
        stall_s: seconds that a collective may take; of the first world alone.
    """
    global _departure
    if _departure is None:
        _departure = Departure(world, stall_s)
    _departure.worlds.append(world)
    world.watch = _departure.watch


class Departure:
    """Watches over how this process leaves.

    Attributes:
        worlds: those of all ranks. While one of them is open, the others may wait for this rank.
    """

    def __init__(self, world: Company, stall_s: float) -> None:
        """Collective."""
        self._process, self._where = os.getpid(), f"rank {world.rank} on {world.hosts[world.rank]}"
        self.worlds: list[Company] = []
        shared = Path(tempfile.gettempdir()) if world.nodes == 1 else Path.cwd()
        folder = shared / f"hpcopt-stalls-{world.gather_text(token_hex(8))[0]}"
        self.watch = StallWatch(folder, world.rank, world.hosts, stall_s, forsaken=lambda: self.end(EXIT_PEER))
        self.watch.__enter__()
        sys.excepthook = _then_end(sys.excepthook, self.end)
        sys.exit = _exit
        atexit.register(self._leave)

    def end(self, exit_code: int) -> None:
        """End every rank of the job, unless none waits for this one."""
        if not self._open():
            return
        print(f"hpcopt: {self._where} ends the job, exit code {exit_code}", file=sys.stderr, flush=True)
        leave_exit_code(exit_code)
        self._open()[0].transport.abort(exit_code)

    def _leave(self) -> None:
        """At the end of the program. Collective, if all comes to its end in order."""
        try:
            for world in self._open():
                world.close()
        except Exception as error:
            sys.excepthook(type(error), error, error.__traceback__)
        if os.getpid() == self._process:
            self.watch.__exit__()

    def _open(self) -> list[Company]:
        return [world for world in self.worlds if not world.closed] if os.getpid() == self._process else []


def _then_end(
    show: Callable[[type[BaseException], BaseException, TracebackType | None], Any], end: Callable[[int], None]
) -> Callable[[type[BaseException], BaseException, TracebackType | None], None]:
    """An excepthook that shows the traceback as before, then ends the job."""

    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        show(kind, error, traceback)
        if not (hasattr(sys, "ps1") or sys.flags.interactive):
            end(exit_code_of(error))

    return hook


class _Exit(SystemExit):
    """Python gives no hook for an exit. But it asks one that nobody has caught for its code, from beneath the last
    frame of the program, before it waits for threads that may be waiting for other ranks.
    """

    @property
    def code(self) -> Any:  # type: ignore[override]
        code = SystemExit.code.__get__(self)  # type: ignore[union-attr]
        if code and _departure is not None and not _called_by_python():
            if not isinstance(code, int):
                print(code, file=sys.stderr, flush=True)
            _departure.end(code if isinstance(code, int) else EXIT_BUG)
        return code


_Exit.__module__, _Exit.__qualname__ = "builtins", SystemExit.__qualname__  # as tracebacks name it


def _called_by_python() -> bool:
    """Whether the caller has a caller."""
    try:
        sys._getframe(2)
    except ValueError:
        return False
    return True


def _exit(code: Any = None, /) -> NoReturn:
    """``sys.exit``; in other threads than the main one, whose exits end nothing, as it was."""
    main = threading.current_thread() is threading.main_thread()
    raise (_Exit if main else SystemExit)(code)
