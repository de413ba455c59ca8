"""A change of a file takes effect as a whole or not at all, whenever its writer is killed."""

import errno
import hashlib
import io
import multiprocessing
import os
import random
import struct
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import h5py
import numpy as np
import pytest

from hpcopt.store import hdf5, journal

START, STEPS = 3, 40


def content(path) -> np.ndarray:
    with journal.viewing(path) as file:
        return file["x"][:]


def grow(file: h5py.File) -> None:
    """Lengthen x by its own length in ones, so that every state tells how many changes were made."""
    x = file["x"]
    x.resize(x.shape[0] + 1000, axis=0)
    x[-1000:] = x.shape[0]


@pytest.fixture
def path(tmp_path):
    with h5py.File(tmp_path / "f.h5", "w", libver=hdf5.VERSIONS) as file:
        file.create_dataset("x", (0,), np.int64, maxshape=(None,), chunks=(100,), fletcher32=True)
    return tmp_path / "f.h5"


def test_changes_arrive_in_the_plain_file(path):
    for _ in range(3):
        with journal.changing(path) as file:
            grow(file)
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["x"], np.repeat([1000, 2000, 3000], 1000))
    assert [entry.name for entry in path.parent.iterdir()] == ["f.h5"]


def test_an_exception_changes_nothing(path):
    before = path.read_bytes()
    with pytest.raises(KeyError), journal.changing(path) as file:
        grow(file)
        raise KeyError
    assert path.read_bytes() == before


def interrupted(path, monkeypatch, at: str):
    """Run a change that stops where a kill would stop it."""

    def stop(*_: object) -> None:
        raise InterruptedError

    monkeypatch.setattr(journal, at, stop)
    with pytest.raises(InterruptedError), journal.changing(path) as file:
        grow(file)
    monkeypatch.undo()


def test_before_the_journal_is_whole_nothing_has_happened(path, monkeypatch):
    before = path.read_bytes()
    interrupted(path, monkeypatch, "_apply")
    whole = journal.journal_of(path).read_bytes()
    for size in [0, 1, 40, len(whole) // 2, len(whole) - 1]:
        journal.journal_of(path).write_bytes(whole[:size])
        assert len(content(path)) == 0
        journal.recover(path)
        assert path.read_bytes() == before
        assert not journal.journal_of(path).exists()


def test_once_the_journal_is_whole_the_change_has_happened(path, monkeypatch):
    with journal.changing(path) as file:
        grow(file)
    before = path.read_bytes()
    interrupted(path, monkeypatch, "_apply")
    whole = journal.journal_of(path).read_bytes()
    found = journal.read_journal(path)
    assert found is not None
    size, pages = found
    rng = random.Random(1)
    for _ in range(20):  # killed after any of the pages was written, in any order
        mixed = bytearray(before.ljust(size, b"\0"))
        for page in rng.sample(sorted(pages), rng.randrange(len(pages) + 1)):
            mixed[page * journal.PAGE : (page + 1) * journal.PAGE] = pages[page]
        path.write_bytes(mixed)
        journal.journal_of(path).write_bytes(whole)
        expected = np.repeat([1000, 2000], 1000)
        np.testing.assert_array_equal(content(path), expected)
        with journal.changing(path) as file:
            grow(file)
        with h5py.File(path) as file:
            np.testing.assert_array_equal(file["x"], np.repeat([1000, 2000, 3000], 1000))


def test_a_journal_that_its_writer_removes_while_it_is_looked_at_is_none(path, monkeypatch):
    interrupted(path, monkeypatch, "_apply")
    look = journal.require_plain

    def look_as_it_goes(file, **settings):
        status = look(file, **settings)
        if file == journal.journal_of(path):
            monkeypatch.undo()
            journal.recover(path)
        return status

    monkeypatch.setattr(journal, "require_plain", look_as_it_goes)
    assert len(content(path)) == 1000


def test_the_view_reads_what_was_written_over_the_file(tmp_path):
    """Random reads and writes against a bytearray that does the same."""
    rng = random.Random(5)
    expected = bytearray(rng.randbytes(20_000))
    (tmp_path / "f").write_bytes(expected)
    with io.FileIO(tmp_path / "f") as base:
        view = journal.View(base, {}, len(expected))
        for _ in range(300):
            offset, count = rng.randrange(30_000), rng.choice([0, 1, 7, 4096, 9000])
            view.seek(offset)
            if rng.random() < 0.5:
                data = rng.randbytes(count)
                if count:
                    expected.extend(bytes(max(0, offset + count - len(expected))))
                    expected[offset : offset + count] = data
                view.write(data)
            else:
                buffer = bytearray(b"?" * count)
                view.readinto(buffer)
                assert buffer == expected[offset : offset + count].ljust(count, b"\0")
            assert view.size == len(expected)
    assert (tmp_path / "f").stat().st_size == 20_000


def keep_growing(path: Path, told: Connection) -> None:
    told.send(0)
    while True:
        with journal.changing(path) as file:
            grow(file)
            length = len(file["x"])
        told.send(length)


def test_kills_at_random_moments(path):
    """Somewhere within the change that follows the first few that the writer has told of."""
    context, rng, told = multiprocessing.get_context("fork"), random.Random(3), 0
    for _ in range(15):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=keep_growing, args=(path, theirs))
        process.start()
        theirs.close()
        for _ in range(1 + rng.randrange(4)):  # 0 once it is ready, then up to three lengths
            told = max(told, ours.recv())
        time.sleep(rng.uniform(0, 0.01))
        process.kill()
        with suppress(EOFError):
            while True:
                told = max(told, ours.recv())
        process.join()
        ours.close()
        x = content(path)
        np.testing.assert_array_equal(x, np.repeat(np.arange(1000, len(x) + 1, 1000), 1000))
        assert len(x) >= told
    assert told > 10_000


ABSURD = {
    "a page before the file": (4096, [-1]),
    "a page far behind the file": (4096, [1 << 50]),
    "an end far behind the file": (1 << 62, [0]),
    "pages out of order": (8192, [1, 0]),
    "a page twice": (8192, [1, 1]),
    "no page": (0, []),
}


@pytest.mark.parametrize(("size", "pages"), ABSURD.values(), ids=ABSURD)
def test_a_right_checksum_over_absurd_pages_changes_nothing(path, size, pages):
    before = path.read_bytes()
    head = journal.HEAD.pack(journal.MAGIC, size, len(pages)) + struct.pack(f"<{len(pages)}q", *pages)
    raw = head + bytes(journal.PAGE * len(pages))
    journal.journal_of(path).write_bytes(raw + hashlib.sha256(raw).digest())
    assert journal.read_journal(path) is None
    journal.recover(path)
    assert path.read_bytes() == before
    assert not journal.journal_of(path).exists()


def test_a_full_disk_leaves_the_file_and_no_journal(path, monkeypatch):
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"), journal.changing(path) as file:
            grow(file)
    assert path.read_bytes() == before
    assert not journal.journal_of(path).exists()
    with journal.changing(path) as file:
        grow(file)
    assert path.read_bytes() != before
