"""The 1,797 handwritten digits that scikit-learn carries: 8x8 pixels, intensities 0..16, from the UCI test set of
Alpaydin and Kaynak (1998).
"""

import hashlib
from pathlib import Path

import numpy as np

from hpcopt.errors import DataError
from hpcopt.prepare.dataset import DataSet, image_classes

TEST_ROWS = 360
SPLIT_SEED = 20260601
SHA256 = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"  # of images, then labels, as uint8


def read(source: Path | None) -> DataSet:
    """1,437 rows to train and 360 to test, (1, 8, 8) uint8 images, drawn without replacement by a fixed seed.

    Raises:
        DataError: scikit-learn is missing or carries other digits.
    """
    if source is not None:
        raise DataError("the digits come with scikit-learn: leave --source out")
    images, labels = _load()
    order = np.random.default_rng(SPLIT_SEED).permutation(len(labels))
    test, train = order[:TEST_ROWS], order[TEST_ROWS:]
    return image_classes(
        (images[train], labels[train]),
        (images[test], labels[test]),
        scale=1 / 16,
        title="Handwritten digits, 8x8 pixels",
        source="sklearn.datasets.load_digits: UCI Optical Recognition of Handwritten Digits, test set",
        license="CC BY 4.0",
        history=f"rows permuted by numpy.random.default_rng({SPLIT_SEED}), the first {TEST_ROWS} are the test split",
        classes=[str(digit) for digit in range(10)],
    )


def _load() -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as cause:
        raise DataError(
            "the digits come with scikit-learn: `pip install scikit-learn` (or the extra `data`)"
        ) from cause
    bunch = load_digits()
    images, labels = bunch.images.astype(np.uint8)[:, None], bunch.target.astype(np.uint8)
    if hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest() != SHA256:
        raise DataError(
            "scikit-learn carries other digits than the ones this split was made for: install scikit-learn 1.6 to 1.9"
        )
    return images, labels
