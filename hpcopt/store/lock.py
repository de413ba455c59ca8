"""One job at a time in a run directory, on whatever file system and whatever became of the job before.

Two things keep a second job out. A lock of POSIX (``fcntl``), which the operating system takes back when its owner
ends, however; shared file systems carry it from host to host, but some have none, and some only pretend. And a mark,
the text of the locked file: who holds it, on which boot of which machine, and a count that grows every few seconds, its
heartbeat. On the owner's own machine the lock alone decides. From another one, a mark whose heart beats is an owner; a
mark that is silent was left by a crash. No two clocks are compared.
"""

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

from hpcopt.errors import JobError
from hpcopt.store import strict_json
from hpcopt.store.files import require_plain

BEAT_S = 5.0  # between two heartbeats
SILENT_BEATS = 3  # after which a heart that should have beaten does not
MARK_BYTES = 512  # always as many: a full disk has room for the next beat
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class RunLock:
    """The lock of one run directory, held from ``take`` until ``release`` or the end of the process."""

    def __init__(self, path: Path, beat_s: float = BEAT_S) -> None:
        """Of the file at ``path``; its heart beats every ``beat_s`` seconds."""
        self.path, self._beat_s = path, beat_s
        self._descriptor: int | None = None
        self._mark: dict[str, Any] = {}
        self._ended = threading.Event()
        self._heart: threading.Thread | None = None

    def take(self, *, again: bool = False) -> None:
        """Hold the lock, and leave the mark.

        A mark of the same SLURM job before it was requeued is stale, even if a file server does not know it yet. One
        of another machine is listened to for some seconds, as is any where the file system has no locks.

        Args:
            again: this job had it before: lock and mark, if there are any, are those of a rank that it has lost.

        Raises:
            JobError: another job holds it.
            OSError: the file cannot be opened.
        """
        if os.path.lexists(self.path):
            require_plain(self.path)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            ours = _owner(self._beat_s)
            sure = again or self._may_take(descriptor, ours)
            _lock(descriptor)
            _write(descriptor, ours)
            if not sure:
                time.sleep(self._beat_s / SILENT_BEATS)  # another that found the same may leave its mark meanwhile
                now = self._look_again(descriptor)
                _require(now.get("token") == ours["token"], self.path, now)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor, self._mark = descriptor, ours
        self._ended.clear()
        self._heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._heart.start()

    def require_held(self) -> None:
        """Make sure that no other job has taken over, as from one that was stopped for longer than a heart may pause.

        Raises:
            JobError: one has.
        """
        if self._descriptor is not None and (theirs := self._successor(self._descriptor)) is not None:
            raise JobError(
                f"{_text(theirs)} has taken over the run directory {self.path.parent}, and this start ends: was it "
                "stopped or cut off?"
            )

    def release(self) -> None:
        """Let go."""
        if self._descriptor is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        self._ended.set()
        assert self._heart is not None
        self._heart.join(self._beat_s)
        if self._heart.is_alive():
            return  # a file system that hangs has it: its descriptor must not become another file's
        if self._successor(descriptor) is None:
            with suppress(OSError):
                os.ftruncate(descriptor, 0)
        os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self.release()

    def _may_take(self, descriptor: int, ours: Mapping[str, Any]) -> bool:
        """Whether it is sure that nobody else has it; False if that is only likely.

        Raises:
            JobError: somebody has it.
        """
        theirs, locked = _read(descriptor), _lock(descriptor)
        if _earlier_start(theirs, ours):
            return True
        _require(locked is not False, self.path, theirs)
        if locked and theirs.get("boot") == ours["boot"]:
            return True
        beat_s = theirs.get("beat_s")
        if not isinstance(beat_s, int | float):  # nobody's, or of one whose heart never beat
            return locked is True
        until_s = time.monotonic() + SILENT_BEATS * min(beat_s, BEAT_S)
        while time.monotonic() < until_s:
            time.sleep(min(beat_s, BEAT_S) / 4)
            now = self._look_again(descriptor)
            _require(not now or now == theirs, self.path, now)
        return False

    def _look_again(self, descriptor: int) -> dict[str, Any]:
        """The mark as another machine may have written it by now: NFS looks when a file is opened.

        Raises:
            JobError: somebody has the lock.
        """
        again = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            now = _read(again)
        finally:
            os.close(again)  # which gives the lock away, if we have it
        _require(_lock(descriptor) is not False, self.path, now)
        return now

    def _beat(self) -> None:
        while not self._ended.wait(self._beat_s):
            with suppress(OSError):  # a file system that is not there now
                if self._descriptor is None or self._successor(self._descriptor) is not None:
                    return
                self._mark["beat"] += 1
                _write(self._descriptor, self._mark)

    def _successor(self, descriptor: int) -> dict[str, Any] | None:
        """Whose mark stands in the place of ours; None if it is ours, or nobody's."""
        _lock(descriptor)
        theirs = _read(descriptor)
        return theirs if theirs.get("token", self._mark["token"]) != self._mark["token"] else None


def _lock(descriptor: int) -> bool | None:
    """Take the lock, or keep it; False if another has it, None where the file system has no locks."""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # ENOLCK, ENOSYS
        return None
    return True


def _read(descriptor: int) -> dict[str, Any]:
    return strict_json.mapping(os.pread(descriptor, 4096, 0).decode(errors="replace"))


def _write(descriptor: int, mark: Mapping[str, Any]) -> None:
    text = json.dumps(mark).encode()
    os.pwrite(descriptor, text.ljust(MARK_BYTES), 0)
    os.ftruncate(descriptor, max(MARK_BYTES, len(text)))
    os.fsync(descriptor)


def _owner(beat_s: float) -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
        "restart": os.environ.get("SLURM_RESTART_COUNT", "0"),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "boot": BOOT_ID.read_text(encoding="utf-8").strip() if BOOT_ID.exists() else None,
        "token": uuid4().hex,
        "beat_s": beat_s,
        "beat": 0,
    }


def _earlier_start(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> bool:
    """Whether a mark is that of our SLURM job before it was requeued."""
    job = ours["slurm_job"]
    return job is not None and theirs.get("slurm_job") == job and theirs.get("restart") != ours["restart"]


def _require(free: bool, path: Path, theirs: Mapping[str, Any]) -> None:
    if not free:
        raise JobError(
            f"the run directory {path.parent} is in use by {_text(theirs)}: "
            "wait until it has ended, stop it, or name another --run-dir"
        )


def _text(owner: Mapping[str, Any]) -> str:
    """Who holds a lock, in printable characters only."""
    job = f", SLURM job {owner['slurm_job']}" if owner.get("slurm_job") else ""
    said = f"process {owner.get('pid')} on {owner.get('host')}{job}, since {owner.get('since')}"
    return "".join(c for c in said if c.isprintable()) if owner else "another job"
