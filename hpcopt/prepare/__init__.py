"""Raw data -> HDF5 shards, once, offline: ``python -m hpcopt.prepare NAME``. One file a source; training calls
prepare() when the digits are missing.
"""

import os
import shutil
import socket
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from hpcopt import __version__
from hpcopt.errors import DataError
from hpcopt.prepare import digits, fashion_mnist, fashion_segmentation, images
from hpcopt.prepare.dataset import DataSet
from hpcopt.store.shards import Shards, write_shards

SOURCES: dict[str, Callable[[Path | None], DataSet]] = {
    "digits": digits.read,
    "fashion-mnist": fashion_mnist.read,
    "fashion-segmentation": fashion_segmentation.read,
    "images": images.read,
}
SPLITS = ("train", "test")


def is_prepared(name: str, data_dir: Path) -> bool:
    """Whether data_dir/name holds all its shards, undamaged (reads every byte)."""
    try:
        for split in SPLITS:
            Shards(Path(data_dir) / name, split).verify()
    except DataError:
        return False
    return True


def prepare(name: str, data_dir: Path, *, force: bool = False, source: Path | None = None) -> Path:
    """Make the shards of a data set in data_dir/name; does nothing if they are there and undamaged, unless forced.

    Args:
        name: one of SOURCES.
        data_dir: folder of data sets; made if it is missing.
        force: make them again in any case.
        source: folder of the raw files, where the source has any.

    Returns:
        The data set's folder. It appears whole or not at all.

    Raises:
        DataError: unknown name, or the raw data is missing or not what it should be.
    """
    if name not in SOURCES:
        raise DataError(f"no data set `{name}`: choose one of {', '.join(SOURCES)}")
    folder = Path(data_dir) / name
    if not force and is_prepared(name, data_dir):
        return folder
    data = SOURCES[name](source)
    fresh = folder.with_name(f".{name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        made = {"hpcopt_version": __version__, "date_created": datetime.now(UTC).isoformat(timespec="seconds")}
        for split in SPLITS:
            attributes = {**data.attributes, **made}
            write_shards(
                fresh,
                split,
                data.arrays[split],
                rows_per_shard=data.rows_per_shard,
                attributes=attributes,
                about=data.about,
            )
        try:
            fresh.rename(folder)
        except OSError:  # there is one, perhaps of another job that was first and reads it already
            if force or not is_prepared(name, data_dir):
                shutil.rmtree(folder)
                fresh.rename(folder)
    except OSError as cause:
        raise DataError(f"cannot write {folder} ({cause}): name a writable folder with --data-dir") from cause
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return folder
