"""What may happen to the files of a run directory."""

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from hypothesis import strategies as st

Damage = Callable[[Path, Path], None]  # of a path in a run directory, beside another run's directory

_DAMAGED_ALREADY = (OSError, RuntimeError, KeyError, ValueError, TypeError)  # what h5py raises then

FILES = ("metrics.h5", "job.toml", "log.txt", "lock", "checkpoints", "checkpoints/step_00000004")
PARTS = ("checkpoint.json", "shared.h5", "rank_00000.h5")
ATTRIBUTES: tuple[Any, ...] = (
    *(-1, 0, 2**62, float("nan"), float("inf"), "", "\x1b[31mred", "text", b"\xff\xfe", True),
    *(np.arange(3), np.zeros(0), np.array(["a", "b"], dtype=object), np.zeros((2, 2)), h5py.Empty("f")),
)


def remove(path: Path) -> None:
    """Take away whatever is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def damages() -> st.SearchStrategy[Damage]:
    """One thing that goes wrong with one file."""
    return st.one_of(
        st.floats(0, 1).map(_truncated),
        st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=8).map(
            _flipped
        ),
        st.sampled_from([b"", b"\0" * 4096, b"\x89HDF\r\n\x1a\n", b"{}", b"[run]\n", b"\xff\xfe" * 9]).map(_replaced),
        st.sampled_from(["/dev/zero", "/dev/null", "itself", "nothing", "victim", "."]).map(linked),
        st.sampled_from([_fifo, _directory, _gone, _of_another_run]),
        st.tuples(st.integers(0, 60), st.sampled_from(["", *_NAMES]), st.sampled_from(ATTRIBUTES)).map(attribute),
        st.tuples(st.integers(0, 60), st.sampled_from(ATTRIBUTES)).map(_values),
    )


_NAMES = ("schema_version", "title", "config", "ranks", "phases", "document", "sha256", "plugins", "hostnames", "units")


def _truncated(share: float) -> Damage:
    def damage(path: Path, _: Path) -> None:
        if path.is_file():
            os.truncate(path, int(share * path.stat().st_size))

    return damage


def _flipped(places: list[tuple[float, int]]) -> Damage:
    def damage(path: Path, _: Path) -> None:
        if path.is_file() and (content := bytearray(path.read_bytes())):
            for share, bits in places:
                content[int(share * len(content))] ^= bits
            path.write_bytes(content)

    return damage


def _replaced(content: bytes) -> Damage:
    def damage(path: Path, _: Path) -> None:
        remove(path)
        path.write_bytes(content)

    return damage


def linked(target: str) -> Damage:
    """A symbolic link in a file's place."""

    def damage(path: Path, other: Path) -> None:
        remove(path)
        path.symlink_to({"itself": path, "victim": other.parent / "victim"}.get(target, target))

    return damage


def _fifo(path: Path, _: Path) -> None:
    remove(path)
    os.mkfifo(path)


def _directory(path: Path, _: Path) -> None:
    remove(path)
    path.mkdir()


def _gone(path: Path, _: Path) -> None:
    remove(path)


def _of_another_run(path: Path, other: Path) -> None:
    theirs = next((p for p in sorted(other.rglob(path.name))), None)
    remove(path)
    if theirs is not None:
        (shutil.copytree if theirs.is_dir() else shutil.copy)(theirs, path)


def _objects(file: h5py.File) -> list[Any]:
    found: list[Any] = [file]
    file.visititems(lambda _, item: found.append(item))
    return found


def attribute(choice: tuple[int, str, Any]) -> Damage:
    """An attribute of an HDF5 file of another kind."""
    number, name, value = choice

    def damage(path: Path, _: Path) -> None:
        if path.is_file() and h5py.is_hdf5(path):
            with suppress(*_DAMAGED_ALREADY), h5py.File(path, "r+") as file:
                found = _objects(file)
                target = found[number % len(found)] if not name else file
                names = [name] if name else sorted(target.attrs)
                for known in names[number % len(names) :][:1] if names else []:
                    target.attrs[known] = value

    return damage


def _values(choice: tuple[int, Any]) -> Damage:
    """A dataset of an HDF5 file that holds something else, or is a group."""
    number, value = choice

    def damage(path: Path, _: Path) -> None:
        if path.is_file() and h5py.is_hdf5(path):
            with suppress(*_DAMAGED_ALREADY), h5py.File(path, "r+") as file:
                names = [item.name for item in _objects(file) if item.name != "/"]
                if names:
                    name = names[number % len(names)]
                    del file[name]
                    file[name] = value

    return damage
