"""Room for the rows of a replay: in memory, or in an HDF5 file that is larger than memory may be."""

import os
import tempfile
import weakref
from pathlib import Path

import numpy as np

from hpcopt.errors import JobError
from hpcopt.store import hdf5


def in_memory(capacity: int, width: int) -> np.ndarray:
    """Rows of float32. Memory is taken as they are filled.

    Raises:
        JobError: it would not be enough.
    """
    needed_bytes = 4 * capacity * width
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed_bytes > memory_bytes:
        raise JobError(
            f"[solver.replay] capacity = {capacity:,} transitions of {width:,} numbers take {needed_bytes / 1e9:,.0f} "
            f"GB, and this machine has {memory_bytes / 1e9:,.0f}: lower it, or let them lie in a folder"
        )
    return np.zeros((capacity, width), np.float32)


def in_file(folder: Path, capacity: int, width: int) -> np.ndarray:
    """Rows of float32 that lie in a file, ``replay-*.h5`` in a folder, and pass through memory as they are used. The
    file goes with them.

    Raises:
        JobError: the folder cannot be written to, or has no room.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        holder = tempfile.NamedTemporaryFile(prefix="replay-", suffix=".h5", dir=folder, delete=False)  # noqa: SIM115
        holder.close()
        path = Path(holder.name)
        with hdf5.create(path) as file:
            array = hdf5.contiguous(file, "rows", (capacity, width), np.dtype(np.float32))
            hdf5.set_attributes(
                array, {"long_name": "transitions: observation, action, reward, end, next", "units": "1"}
            )
            file.flush()
            place = hdf5.place(array)
        rows = np.memmap(path, np.float32, "r+", place, (capacity, width))
    except OSError as cause:
        raise JobError(f"[solver.replay] folder = {str(folder)!r} cannot hold the replay: {cause}") from cause
    weakref.finalize(rows, path.unlink, missing_ok=True)
    return rows
