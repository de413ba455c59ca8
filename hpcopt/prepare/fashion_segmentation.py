"""Fashion-MNIST made into segmentation: a garment on a background of cloth, and which pixels are the garment's.

A sample is one image of Fashion-MNIST (28x28 pixels) at a random place of a 48x48 canvas. The background is a piece of
another image, 12x12 pixels from the middle of a garment, each pixel enlarged to 4x4, so it has the texture and the
brightness of cloth too. A pixel is the garment's where the published image is brighter than a tenth.
"""

from pathlib import Path

import numpy as np

from hpcopt.prepare import fashion_mnist
from hpcopt.prepare.dataset import DataSet
from hpcopt.store.shards import About

SIDE, IMAGE, PATCH = 48, 28, 12
THRESHOLD = 25  # of 255
ROWS = {"train": 6000, "test": 1000}
SEED = 20261121


def read(source: Path | None) -> DataSet:
    """6,000 rows to train and 1,000 to test, made from the same split of Fashion-MNIST: images (1, 48, 48) and masks
    (48, 48), uint8.

    Raises:
        DataError: Fashion-MNIST is missing or is not the published one.
    """
    original = fashion_mnist.read(source)
    draw = np.random.default_rng(SEED)
    arrays = {}
    for split, rows in ROWS.items():
        images, masks = compose(np.asarray(original.arrays[split]["images"])[:, 0], rows, draw)
        arrays[split] = {"images": images[:, None], "masks": masks}
    intensity = arrays["train"]["images"] / 255
    attributes = {
        "title": "Garments on cloth, 48x48 pixels, with masks",
        "source": f"made from {original.attributes['source']}",
        "license": original.attributes["license"],
        "history": f"hpcopt.prepare.fashion_segmentation, numpy.random.default_rng({SEED})",
        "scale": 1 / 255,
        "mean": intensity.mean((0, 2, 3)),
        "std": intensity.std((0, 2, 3)),
    }
    about = {
        "images": About("intensity; times the file's scale it is in [0, 1]", "1", ("row", "channel", "y", "x")),
        "masks": About("1 on the garment, 0 elsewhere", "1", ("row", "y", "x")),
    }
    return DataSet(arrays, attributes, about, rows_per_shard=3000)


def compose(garments: np.ndarray, rows: int, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Put garments on cloth.

    Args:
        garments: (n, 28, 28), uint8.
        rows: how many canvases, each with a garment drawn without replacement.
        draw: random numbers.

    Returns:
        Images and masks, each (rows, 48, 48), uint8.
    """
    chosen, cloth = draw.permutation(len(garments))[:rows], draw.integers(len(garments), size=rows)
    places = draw.integers(0, SIDE - IMAGE + 1, (rows, 2))
    middle = (IMAGE - PATCH) // 2
    patches = garments[cloth, middle : middle + PATCH, middle : middle + PATCH]
    images = patches.repeat(SIDE // PATCH, axis=1).repeat(SIDE // PATCH, axis=2)
    masks = np.zeros_like(images)
    for image, mask, garment, (y, x) in zip(images, masks, garments[chosen], places, strict=True):
        worn = garment > THRESHOLD
        window = (slice(y, y + IMAGE), slice(x, x + IMAGE))
        mask[window] = worn
        image[window][worn] = garment[worn]
    return images, masks
