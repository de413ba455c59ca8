"""What a source hands to the writer of shards."""

import os
import shutil
import socket
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hpcopt import __version__
from hpcopt.errors import DataError
from hpcopt.store.files import remove
from hpcopt.store.shards import About, write_shards


class DataSet(NamedTuple):
    """The arrays of each split with what is known of them."""

    arrays: Mapping[str, Mapping[str, np.ndarray]]  # split -> name -> (N, ...)
    attributes: Mapping[str, Any]
    about: Mapping[str, About]
    rows_per_shard: int


def write_whole(folder: Path, data: DataSet, may_replace: Callable[[], bool]) -> None:
    """Write a data set's shards into a folder, which appears whole or not at all.

    Args:
        folder: of the data set.
        data: what is written.
        may_replace: whether what stands there by then, perhaps of another job that was first, gives way.

    Raises:
        DataError: it cannot be written.
    """
    fresh = folder.with_name(f".{folder.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    made = {"hpcopt_version": __version__, "date_created": datetime.now(UTC).isoformat(timespec="seconds")}
    try:
        for split, arrays in data.arrays.items():
            write_shards(
                fresh,
                split,
                arrays,
                rows_per_shard=data.rows_per_shard,
                attributes={**data.attributes, **made},
                about=data.about,
            )
        try:
            fresh.rename(folder)
        except OSError:  # there is one, perhaps of another job that was first and reads it already
            if may_replace():
                remove(folder)
                fresh.rename(folder)
    except OSError as cause:
        raise DataError(f"cannot write {folder} ({cause}): name a writable folder with --data-dir") from cause
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def image_classes(
    train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], scale: float, **attributes: Any
) -> DataSet:
    """A data set of labelled images.

    Args:
        train: images, (N, C, H, W), uint8, and labels, (N,).
        test: the same for the test split.
        scale: a stored value times this is the intensity in [0, 1].
        attributes: title, source, license, classes and the like.
    """
    intensity = train[0].astype(np.float64) * scale
    statistics = {"scale": scale, "mean": intensity.mean((0, 2, 3)), "std": intensity.std((0, 2, 3))}
    arrays: dict[str, dict[str, np.ndarray]] = {
        split: {"images": np.ascontiguousarray(images, np.uint8), "labels": labels.astype(np.int64)}
        for split, (images, labels) in (("train", train), ("test", test))
    }
    about = {
        "images": About(
            "intensity as stored; times the file's scale it is in [0, 1]", "1", ("row", "channel", "y", "x")
        ),
        "labels": About("class, an index into the file's classes", "1", ("row",)),
    }
    rows_per_shard = max(1, (64 << 20) // intensity[0].size)  # some 64 MB of images a shard
    return DataSet(arrays, {**attributes, **statistics}, about, rows_per_shard)
