"""Fashion-MNIST: 70,000 images of clothing, 28x28 pixels. Xiao, Rasul, Vollgraf 2017, arXiv:1708.07747. Debian packages
it as dataset-fashion-mnist.
"""

import gzip
import hashlib
from pathlib import Path

import numpy as np

from hpcopt.errors import DataError
from hpcopt.prepare.dataset import DataSet, image_classes

FOLDER = Path("/usr/share/datasets/fashion-mnist")
CLASSES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
SHA256 = {  # of the unpacked files, so that another gzip of the same data is as good
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


def read(source: Path | None) -> DataSet:
    """60,000 rows to train and 10,000 to test, (1, 28, 28) uint8 images.

    Raises:
        DataError: the files are missing or are not Fashion-MNIST.
    """
    folder = FOLDER if source is None else source
    unpacked = {name: _unpack(folder / f"{name}.gz") for name in SHA256}
    for name, raw in unpacked.items():
        if hashlib.sha256(raw).hexdigest() != SHA256[name]:
            raise DataError(
                f"{folder / name}.gz is not the file of Fashion-MNIST (its checksum differs): install it again"
            )
    return image_classes(
        (idx(unpacked["train-images-idx3-ubyte"])[:, None], idx(unpacked["train-labels-idx1-ubyte"])),
        (idx(unpacked["t10k-images-idx3-ubyte"])[:, None], idx(unpacked["t10k-labels-idx1-ubyte"])),
        scale=1 / 255,
        title="Fashion-MNIST: images of clothing, 28x28 pixels",
        source="https://github.com/zalandoresearch/fashion-mnist",
        license="MIT, Copyright 2017 Zalando SE",
        history="train and test as published, in their order",
        classes=CLASSES,
    )


def _unpack(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes())
    except FileNotFoundError as cause:
        raise DataError(
            f"{path} is missing: `apt-get install dataset-fashion-mnist`, "
            "or name the folder of the four .gz files with --source"
        ) from cause
    except (OSError, EOFError) as cause:
        raise DataError(f"{path} cannot be read ({cause}): install it again") from cause


def idx(raw: bytes) -> np.ndarray:
    """Parse the IDX format of unsigned bytes: 0, 0, type 8, number of dimensions, big-endian sizes, then the values."""
    dims = raw[3]
    shape = np.frombuffer(raw, ">u4", dims, 4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dims).reshape(shape)
