"""A process that brings its rank back: the launcher's own, which forks the rank once everything is imported.

A rank that dies of a signal is there again in a tenth of a second, and asks to join. One that is stopped (SIGSTOP)
while its keeper runs on counts as lost: it is killed. Signals that mean "leave soon" are passed on. If the keeper dies,
its rank dies too: a host is lost as a whole.
"""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from hpcopt.errors import EXIT_PEER

EXPELLED = 71  # exit code of a rank that the others went on without: it comes back
PASSED_ON = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)
FRUITLESS = 3  # lives that did not join, one after the other, until the keeper gives up
STOPPED_S = 0.5  # a rank may be stopped, if its keeper is not
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Kept:
    """What ``keep`` returns.

    Attributes:
        exit_code: in the keeper, once its rank has ended; None in a rank.
        life: how many ranks there were before in this place.
        joined: to be called by a rank that is in a group.
    """

    exit_code: int | None
    life: int
    joined: Callable[[], None] = lambda: None


def keep() -> Kept:
    """Fork a rank, and another one whenever that dies. Returns in each rank, and in the keeper at the end."""
    life = fruitless = 0
    while True:
        reader, writer = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        keeper = os.getpid()
        if (pid := os.fork()) == 0:
            os.close(reader)
            _die_with(keeper)
            return Kept(None, life, partial(_note, writer))
        os.close(writer)
        exit_code = _ended(pid)
        joined = os.read(reader, 1)
        os.close(reader)
        if exit_code not in (None, EXPELLED):
            return Kept(exit_code, life)
        fruitless = 0 if joined else fruitless + 1
        if fruitless == FRUITLESS:
            print(f"hpcopt: gave up on a rank that died {FRUITLESS} times before it could join", file=sys.stderr)
            return Kept(EXIT_PEER, life)
        life += 1


def _ended(pid: int) -> int | None:
    """Wait for a rank's end, passing on signals: its exit code, None if a signal killed it."""

    def pass_on(number: int, _: FrameType | None) -> None:
        os.kill(pid, number)  # it is not waited for yet, so nobody else has its number

    before: dict[signal.Signals, Any] = {number: signal.signal(number, pass_on) for number in PASSED_ON}
    try:
        while True:
            _, status = os.waitpid(pid, os.WUNTRACED)
            if not os.WIFSTOPPED(status):
                break
            time.sleep(STOPPED_S)
            if _is_stopped(pid):
                os.kill(pid, signal.SIGKILL)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else None


def _is_stopped(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    return stat.rpartition(")")[2].split()[0] == "T"


def _note(writer: int) -> None:
    """Tell the keeper that this rank has been in a group."""
    os.write(writer, b"1")


def _die_with(parent: int) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before
        os._exit(EXIT_PEER)
