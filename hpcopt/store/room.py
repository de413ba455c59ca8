"""Why a file cannot be written, in words: which file, the bytes that it needs, and what to do."""

import errno
import os
import re
from pathlib import Path

RESUME = "start the same command again: it goes on from the newest checkpoint"
REMEDIES = {
    errno.ENOSPC: "Make room",
    errno.EDQUOT: "Your quota is used up, which `quota -s` or the site's own command shows: make room",
    errno.EFBIG: "Raise the limit on the size of files (`ulimit -f`)",
}


def unwritten(path: Path, cause: BaseException, needed_bytes: int | None = None) -> str:
    """What to tell of a file that could not be written.

    Args:
        path: of the file, or the folder.
        cause: of the system, of HDF5, or with either as its own cause.
        needed_bytes: about, if somebody knows.
    """
    number = errno_of(cause)
    if number is None:
        return f"cannot write {path} ({cause})"
    needs = f"; it needs {needed_bytes:,} bytes" if needed_bytes is not None else ""
    free = f", and {free_bytes(path):,} are free there" if needs and number == errno.ENOSPC else ""
    if (remedy := REMEDIES.get(number)) is None:
        return f"cannot write {path} ({os.strerror(number)}): name a writable --run-dir"
    return f"cannot write {path}: {os.strerror(number)}{needs}{free}. {remedy}, and {RESUME}"


def errno_of(error: BaseException | None) -> int | None:
    """The system's number of what went wrong; HDF5 has it in its text alone."""
    while error is not None:
        number = getattr(error, "errno", None)
        if isinstance(number, int):
            return number
        if found := re.search(r"errno = (\d+)", str(error)):
            return int(found[1])
        error = error.__cause__ or error.__context__
    return None


def free_bytes(path: Path) -> int:
    """Bytes that the file system of a path has for us; of the nearest folder above it that there is."""
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    status = os.statvfs(there)
    return status.f_bavail * status.f_frsize
