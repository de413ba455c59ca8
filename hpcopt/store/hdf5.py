"""The house's way with HDF5 files: checksummed headers, fixed-length text, and files that appear whole or not at all.

All files are of the format of HDF5 1.10, whose headers carry checksums. Shards and checkpoints are written once and
hold no variable-length value (HDF5 keeps those in a heap without a checksum); their arrays are contiguous and carry a
checksum of their bytes. So every byte of such a file is guarded.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hpcopt.errors import HpcoptError
from hpcopt.store.files import require_filled, require_held, require_plain

CONVENTIONS = "HPCOPT-1.0"
VERSIONS = ("v110", "v110")  # oldest and newest format to use
BLOCK_BYTES = 1 << 24
LARGEST_DOCUMENT_BYTES = 1 << 28  # some 2 million arrays in a tree
PAGE_BYTES = 1 << 12
ALIGNMENT = {"alignment_threshold": PAGE_BYTES, "alignment_interval": PAGE_BYTES}  # so that whole pages are copied


@contextlib.contextmanager
def create(path: Path) -> Iterator[h5py.File]:
    """Create a write-once file at path, which appears when the block ends, complete and on disk; on an exception
    nothing appears.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        with h5py.File(temporary, "x", libver=VERSIONS, **ALIGNMENT) as file:
            yield file
        publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def publish(temporary: Path, path: Path) -> None:
    """Move a finished file or folder to its name; a crash leaves the old or the new one, never a part."""
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's entries, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def reading(path: Path, error: type[HpcoptError], remedy: str) -> Iterator[h5py.File]:
    """Open a file to read. Whatever a damaged one makes HDF5 raise becomes one error that names the file and the
    remedy.
    """
    try:
        require_filled(require_plain(path, links=True))
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except HpcoptError:
        raise
    except FileNotFoundError as cause:
        raise error(f"{path} is missing: {remedy}") from cause
    except Exception as cause:  # HDF5 reports damage as any of a dozen classes
        raise error(f"{path} is damaged ({printable(str(cause))}): {remedy}") from cause


def printable(text: str) -> str:
    """Text that a file gave, as it may reach a terminal: without escape codes, and not endless."""
    safe = "".join(c if c.isprintable() else "?" for c in text)
    return safe if len(safe) <= 300 else safe[:297] + "..."


def text(value: str) -> np.ndarray:
    """UTF-8 text of fixed length as HDF5 takes it."""
    raw = value.encode()
    return np.array(raw, h5py.string_dtype("utf-8", max(1, len(raw))))


def set_attributes(target: h5py.HLObject, attributes: Mapping[str, Any]) -> None:
    """Write text, numbers, arrays and lists of text as attributes; None is left out."""
    for name, value in attributes.items():
        if isinstance(value, str):
            target.attrs[name] = text(value)
        elif isinstance(value, Sequence) and value and all(isinstance(v, str) for v in value):
            raw = [v.encode() for v in value]
            target.attrs[name] = np.array(raw, h5py.string_dtype("utf-8", max(1, *map(len, raw))))
        elif value is not None:
            target.attrs[name] = np.asarray(value)


def get_attributes(target: h5py.HLObject) -> dict[str, Any]:
    """Read attributes back as str, int, float, list of str or array; HDF5's own bookkeeping of dimension scales is left
    out.
    """
    hidden = {"CLASS", "NAME", "DIMENSION_LIST", "REFERENCE_LIST"}
    return {name: _plain(target.attrs[name]) for name in target.attrs if name not in hidden}


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, np.ndarray) and value.dtype.kind in "SO":
        return [v.decode() if isinstance(v, bytes) else str(v) for v in value.ravel()]
    return value.item() if isinstance(value, np.generic) else value


def contiguous(parent: h5py.Group, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> h5py.Dataset:
    """Create an array whose bytes lie in one piece in the file, allocated at once, so that get_offset() is known."""
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_layout(h5py.h5d.CONTIGUOUS)
    plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    kind = h5py.h5t.py_create(dtype, logical=True)
    return h5py.Dataset(h5py.h5d.create(parent.id, name.encode(), kind, h5py.h5s.create_simple(shape), dcpl=plan))


def place(dataset: h5py.Dataset) -> int:
    """Offset in bytes of a contiguous array's values in its file.

    Raises:
        ValueError: the array is not in one piece, or the file ends before it does.
    """
    if dataset.size == 0:
        return 0
    offset = dataset.id.get_offset()
    if offset is None:
        raise ValueError(f"{dataset.name} is not contiguous")
    file_bytes = Path(dataset.file.filename).stat().st_size
    if dataset.file.mode == "r" and offset + dataset.nbytes > file_bytes:
        raise ValueError(f"{dataset.name} ends at byte {offset + dataset.nbytes}, the file at {file_bytes}")
    return int(offset)


def vector(group: h5py.Group, name: str, dtype: str) -> h5py.Dataset:
    """A one-dimensional array whose bytes are all in the file, so that reading it takes no more memory than the file.

    Raises:
        ValueError: it is something else, as a few bytes of fill value that stand for gigabytes are.
    """
    array = group[name]
    if not isinstance(array, h5py.Dataset) or array.ndim != 1 or array.dtype != dtype:
        raise ValueError(f"{name} is no array of {dtype}")
    place(array)
    return array


def filled(array: h5py.Dataset) -> h5py.Dataset:
    """The array, which may be compressed or have places that nobody filled.

    Raises:
        ValueError: it is no array, or stands for much more than the file holds of it, as a fill value does.
    """
    if not isinstance(array, h5py.Dataset):
        raise ValueError(f"{array.name} is no array")
    require_held(array.nbytes, array.id.get_storage_size())
    return array


def whole(array: h5py.Dataset) -> np.ndarray:
    """All values of an array that is ``filled``."""
    values: np.ndarray = filled(array)[...]
    return values


def document(group: h5py.Group) -> bytes:
    """The group's array ``document``.

    Raises:
        ValueError: it is none, or longer than any: holes in a file take no room and are read as zeros.
    """
    array = vector(group, "document", "uint8")
    if array.nbytes > LARGEST_DOCUMENT_BYTES:
        raise ValueError(f"its document has {array.nbytes} bytes, and at most {LARGEST_DOCUMENT_BYTES} are expected")
    return bytes(array[...].tobytes())


def blocks(path: Path, offset: int, nbytes: int) -> Iterator[bytes]:
    """Read a range of a file's bytes piece by piece; ends early if the file does."""
    with path.open("rb") as file:
        file.seek(offset)
        while nbytes > 0 and (block := file.read(min(BLOCK_BYTES, nbytes))):
            yield block
            nbytes -= len(block)
