"""Change an HDF5 file in place such that a kill at any instant leaves either the old or the new content.
 HDF5 writes its metadata piece by piece when a file is closed; a process killed meanwhile leaves a file that nothing
can open. Here HDF5 works on a copy-on-write view: its writes collect in memory as pages, go to ``FILE.journal`` as a
whole with a checksum, and only then into the file itself, after which the journal is removed (redo logging, as
databases do). Whoever finds a whole journal has what is missing; a part of one was written before the file was touched,
and does not count.
"""

import contextlib
import hashlib
import io
import itertools
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py

from hpcopt.store import hdf5
from hpcopt.store.files import require_filled, require_plain, write_new

PAGE = 4096
MOST_BYTES = 1 << 32  # of a journal: one block of rows
SLACK_BYTES = 1 << 28  # of a file behind its last page written: HDF5 leaves room there
MAGIC = b"hpcopt journal 1"
HEAD = struct.Struct("<16sqq")  # magic, size of the file afterwards, number of pages


class View(io.RawIOBase):
    """A file as it will be: its own bytes, and the pages written over them, which stay in memory.

    Attributes:
        pages: page number -> its PAGE bytes.
        size: of the file afterwards, in bytes.
    """

    def __init__(self, base: io.FileIO, pages: dict[int, bytearray], size: int) -> None:
        self.pages, self.size = pages, size
        self._base, self._position = base, 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        """Current position."""
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Read at the current position; what lies beyond the end is left as zeros."""
        target = memoryview(buffer).cast("B")
        start, end = self._position, self._position + len(target)
        got = os.preadv(self._base.fileno(), [target], start)
        target[got:] = bytes(len(target) - got)
        for page in self._written(start, end):
            first, last = max(start, page * PAGE), min(end, (page + 1) * PAGE)
            target[first - start : last - start] = self.pages[page][first - page * PAGE : last - page * PAGE]
        self._position = end
        return len(target)

    def write(self, data: Any) -> int:
        """Write at the current position, into memory."""
        source = memoryview(data).cast("B")
        start, end = self._position, self._position + len(source)
        for page in range(start // PAGE, -(-end // PAGE)):
            first, last = max(start, page * PAGE), min(end, (page + 1) * PAGE)
            if page not in self.pages:
                self.pages[page] = bytearray(PAGE)
                os.preadv(self._base.fileno(), [self.pages[page]], page * PAGE)
            self.pages[page][first - page * PAGE : last - page * PAGE] = source[first - start : last - start]
        self._position, self.size = end, max(self.size, end)
        return len(source)

    def truncate(self, size: int | None = None) -> int:
        """Set the file's size."""
        self.size = self._position if size is None else size
        return self.size

    def _written(self, start: int, end: int) -> Iterator[int]:
        inside = range(start // PAGE, -(-end // PAGE))
        if len(inside) < len(self.pages):
            return (page for page in inside if page in self.pages)
        return (page for page in self.pages if page in inside)


def journal_of(path: Path) -> Path:
    """Path of a file's journal."""
    return path.with_name(path.name + ".journal")


@contextlib.contextmanager
def changing(path: Path) -> Iterator[h5py.File]:
    """Open a file to change it. All changes of the block take effect together when it ends; on an exception none does.

    One writer at a time. First completes or drops what a killed writer left behind.
    """
    recover(path)
    with io.FileIO(path) as base:
        view = View(base, {}, path.stat().st_size)
        with h5py.File(view, "r+", libver=hdf5.VERSIONS) as file:
            yield file
    if view.pages:
        journal = journal_of(path)
        _write_journal(journal, view)
        _apply(path, view.size, view.pages)
        journal.unlink()


def recover(path: Path) -> None:
    """Put a whole journal's pages into the file; remove the journal, whole or not."""
    journal = journal_of(path)
    if not os.path.lexists(journal):
        return
    if (found := read_journal(path)) is not None:
        _apply(path, *found)
    journal.unlink()


def _apply(path: Path, size: int, pages: dict[int, bytearray]) -> None:
    with path.open("r+b") as file:
        for page in sorted(pages):
            file.seek(page * PAGE)
            file.write(pages[page])
        file.truncate(size)
        os.fsync(file.fileno())


def read_journal(path: Path) -> tuple[int, dict[int, bytearray]] | None:
    """The size and pages that a file's journal holds, or None if there is no journal or it is not whole."""
    journal = journal_of(path)
    try:
        length = require_plain(journal, links=True).st_size
        file = journal.open("rb")
    except FileNotFoundError:  # none, or its writer has just removed it
        return None
    with file:
        head = file.read(HEAD.size)
        if len(head) < HEAD.size:
            return None
        magic, size, count = HEAD.unpack(head)
        if magic != MAGIC or count < 0 or length != HEAD.size + count * (8 + PAGE) + 32 or length > MOST_BYTES:
            return None
        numbers = file.read(8 * count)
        raw = file.read(PAGE * count)
        if hashlib.sha256(head + numbers + raw).digest() != file.read(32):
            return None
    pages = struct.unpack(f"<{count}q", numbers)
    if not _sensible(size, pages, path.stat().st_size + length):
        return None
    return size, {page: bytearray(raw[PAGE * i : PAGE * (i + 1)]) for i, page in enumerate(pages)}


def _sensible(size: int, pages: Sequence[int], known_bytes: int) -> bool:
    """Whether pages are in order, and neither they nor the file's end are far beyond what the file and its journal
    hold: a checksum can be right over anything.
    """
    if not pages or pages[0] < 0 or any(a >= b for a, b in itertools.pairwise(pages)):
        return False
    return size > 0 and max(size, pages[-1] * PAGE) <= known_bytes + SLACK_BYTES


def _write_journal(journal: Path, view: View) -> None:
    numbers = sorted(view.pages)
    head = HEAD.pack(MAGIC, view.size, len(numbers)) + struct.pack(f"<{len(numbers)}q", *numbers)
    raw = b"".join([head, *(view.pages[page] for page in numbers)])
    try:
        write_new(journal, raw + hashlib.sha256(raw).digest())
    except OSError as error:  # a full disk needs the room
        journal.unlink(missing_ok=True)
        error.needed_bytes = len(raw)  # type: ignore[attr-defined]
        raise


@contextlib.contextmanager
def viewing(path: Path) -> Iterator[h5py.File]:
    """Open a file to read, also while it is being changed or after its writer was killed; changes nothing on disk.

    What was read is consistent if moment(path) is the same before and after.
    """
    require_filled(require_plain(path, links=True))
    if (found := read_journal(path)) is None:
        with h5py.File(path, "r", locking=False) as file:
            yield file
        return
    size, pages = found
    with io.FileIO(path) as base, h5py.File(View(base, pages, size), "r") as file:
        yield file


def moment(path: Path) -> tuple[int, int, bool]:
    """Something that changes whenever the file's content does."""
    status = require_plain(path, links=True)
    return status.st_mtime_ns, status.st_size, read_journal(path) is not None
