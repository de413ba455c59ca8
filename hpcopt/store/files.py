"""Files of a run directory, which others may have filled too: only plain files are opened, and none through a link."""

import itertools
import os
import shutil
import stat
from pathlib import Path
from typing import TextIO

UNASKED_BYTES = 1 << 28  # may be read whatever a file holds of them
LARGEST_RATIO = 1032  # of a gzip stream's bytes to those that it stands for

KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a symbolic link",
}


class NotPlainError(OSError):
    """There is something else than a plain file; what, the message says."""


def require_plain(path: Path, *, links: bool = False) -> os.stat_result:
    """Make sure that a path is a plain file: whoever opens a FIFO waits, and whoever reads a device never ends.

    Args:
        path: of the file.
        links: whether it may also be a symbolic link to one, as where something is only read.

    Raises:
        FileNotFoundError: there is nothing.
        NotPlainError: it is something else.
        OSError: it cannot be looked at, as where links point at each other.
    """
    status = path.stat() if links else path.lstat()
    kind = stat.S_IFMT(status.st_mode)
    if kind != stat.S_IFREG:
        raise NotPlainError(f"{path} is {KINDS.get(kind, 'no plain file')}")
    return status


def remove(path: Path) -> None:
    """Remove a folder and all that is in it, or whatever is there instead, or nothing: `rmtree` would wait at a FIFO.

    Raises:
        OSError: it cannot be removed.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def require_filled(status: os.stat_result) -> None:
    """Refuse a file that is nearly all holes, which are read as zeros: a few blocks that stand for a terabyte.

    Raises:
        ValueError: it is.
    """
    held = 512 * status.st_blocks or status.st_size  # some file systems do not count blocks
    require_held(status.st_size, held)


def require_held(nbytes: int, held_bytes: int) -> None:
    """Refuse what would take much more memory than the bytes that a file holds of it.

    Raises:
        ValueError: it would.
    """
    if nbytes > UNASKED_BYTES + LARGEST_RATIO * held_bytes:
        raise ValueError(f"it stands for {nbytes} bytes and holds {held_bytes}")


def read_plain(path: Path, most_bytes: int) -> bytes:
    """Give the bytes of a plain file.

    Raises:
        OSError: as require_plain does, or it cannot be read.
        ValueError: it is larger than that.
    """
    if (size := require_plain(path, links=True).st_size) > most_bytes:
        raise ValueError(f"it has {size} bytes, and at most {most_bytes} are expected")
    return path.read_bytes()


def unused(folder: Path, name: str, suffix: str = "") -> Path:
    """A path that nothing has: of this name or, if something is there, of the name with -2, -3 and so on."""
    numbered = (f"{name}-{number}" for number in itertools.count(2))
    return next(
        path for each in itertools.chain([name], numbered) if not os.path.lexists(path := folder / f"{each}{suffix}")
    )


def write_new(path: Path, content: bytes) -> None:
    """Write a file of a program's own, such as one that is about to be renamed; what is in its place is removed."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def replace_text(path: Path, text: str) -> None:
    """Put a text file in the place of what is there, at once and whole; a link is replaced, not followed."""
    beside = path.with_name(f".{path.name}.tmp")
    try:
        write_new(beside, text.encode())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def open_to_append(path: Path) -> TextIO:
    """Open a text file to write at its end.

    Raises:
        OSError: it cannot be written, or it is something else than a plain file.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK  # a FIFO without a reader: ENXIO
    if os.path.lexists(path):
        require_plain(path)
    return os.fdopen(os.open(path, flags, 0o666), "a", encoding="utf-8", errors="replace")
