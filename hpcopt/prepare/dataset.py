"""What a source hands to the writer of shards."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from hpcopt.store.shards import About


class DataSet(NamedTuple):
    """The arrays of each split with what is known of them."""

    arrays: Mapping[str, Mapping[str, np.ndarray]]  # split -> name -> (N, ...)
    attributes: Mapping[str, Any]
    about: Mapping[str, About]
    rows_per_shard: int


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
