"""One job at a time in a run directory: a lock that the operating system takes back when its owner ends, however.

The lock is POSIX's (``fcntl``), on a file that stays; shared file systems carry it from host to host. The file's
text says who holds it, for whoever is refused.
"""

import fcntl
import json
import os
import socket
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from hpcopt.errors import JobError
from hpcopt.store import strict_json
from hpcopt.store.files import require_plain


class RunLock:
    """The lock of one run directory, held from ``take`` until ``release`` or the end of the process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: TextIO | None = None

    def take(self) -> None:
        """Hold the lock, and say in it who does.

        Where the file system has no locks, nothing is held. A lock of the same SLURM job before it was requeued is
        stale, even if a file server does not know it yet.

        Raises:
            JobError: another job holds it.
            OSError: the file cannot be opened.
        """
        if os.path.lexists(self.path):
            require_plain(self.path)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        file = os.fdopen(descriptor, "r+", encoding="utf-8", errors="replace")
        ours = _owner()
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            theirs = strict_json.mapping(file.read(4096))
            job = ours["slurm_job"]
            if job is None or theirs.get("slurm_job") != job or theirs.get("restart") == ours["restart"]:
                file.close()
                raise JobError(
                    f"the run directory {self.path.parent} is in use by {_text(theirs)}: "
                    "wait until it has ended, stop it, or name another --run-dir"
                ) from None
        except OSError:  # ENOLCK, ENOSYS: a file system without locks
            pass
        file.seek(0)
        file.truncate()
        json.dump(ours, file)
        file.flush()
        self._file = file

    def release(self) -> None:
        """Let go."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self.release()


def _owner() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
        "restart": os.environ.get("SLURM_RESTART_COUNT", "0"),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _text(owner: dict[str, Any]) -> str:
    """Who holds a lock, in printable characters only."""
    job = f", SLURM job {owner['slurm_job']}" if owner.get("slurm_job") else ""
    said = f"process {owner.get('pid')} on {owner.get('host')}{job}, since {owner.get('since')}"
    return "".join(c for c in said if c.isprintable()) if owner else "another job"
