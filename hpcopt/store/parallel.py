"""Several trees in one file, written by all ranks at once: parallel HDF5, over MPI-IO.

    parts.h5
        shared/           document, crc32, values/DTYPE: what write_tree gives a file of its own
        rank00000/ ...

It takes an h5py that was built with MPI. Reading takes none: a part is read_tree(path, "rank00000").
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from isal.isal_zlib import crc32

from hpcopt.errors import UnsupportedError
from hpcopt.store import hdf5
from hpcopt.store.tree import STORED_AS, Packed, as_bytes, by_dtype, create_arrays, set_title


def require_mpi() -> None:
    """Raise UnsupportedError if h5py was built without MPI."""
    if not h5py.get_config().mpi:
        raise UnsupportedError(
            f"one file of all ranks takes an h5py that was built with MPI, and h5py {h5py.__version__} here was not: "
            "`CC=mpicc HDF5_MPI=ON pip install --no-binary=h5py h5py` with a parallel HDF5, "
            "or leave [run] checkpoint_one_file out, and every rank writes its own file"
        )


def write_trees(path: Path, comm: Any, parts: Mapping[str, Packed], attributes: Mapping[str, Any]) -> None:
    """Write each rank's parts to one new file; when all ranks have returned, it is on disk. Collective over comm.

    Args:
        path: the file, the same on all ranks.
        comm: communicator of mpi4py.
        parts: this rank's trees by the names of their groups, different from all other ranks'.
        attributes: text and numbers for the root of the file, the same on all ranks.

    Raises:
        OSError, RuntimeError: the file cannot be made, on all ranks; or this rank's values cannot be written.
    """
    sizes = comm.allgather({name: packed.sizes for name, packed in parts.items()})
    failure = None
    with h5py.File(path, "w", driver="mpio", comm=comm, libver=hdf5.VERSIONS, **hdf5.ALIGNMENT) as file:
        set_title(file, attributes)
        for name, each in (item for rank in sizes for item in rank.items()):
            create_arrays(file.create_group(name), each)
        for name, packed in parts.items():
            try:
                _write(file[name], packed)
            except (OSError, RuntimeError) as cause:  # told once the file is closed, which takes all ranks
                failure = cause
    hdf5.sync(path)
    if failure is not None:
        raise failure


def _write(group: h5py.Group, packed: Packed) -> None:
    group["document"][...] = np.frombuffer(packed.document, np.uint8)
    checksum = crc32(packed.document)
    for dtype, indices in by_dtype(packed.table).items():
        array = group[f"values/{dtype}"]
        for index in indices:
            leaf, values = packed.table[index], as_bytes(packed.leaves[index])
            checksum = crc32(values, checksum)
            if leaf.size:
                array[leaf.first : leaf.first + leaf.size] = np.frombuffer(values, STORED_AS[dtype])
    group["crc32"][0] = checksum
