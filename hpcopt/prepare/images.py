"""Photographs in folders, one folder a class, as 224x224 pixels: shorter side to 256, then the middle.

``DIR/CLASS/*`` is split by a fixed seed, one image in ten to test; ``DIR/train/CLASS/*`` with ``DIR/val`` or
``DIR/test`` beside it is taken as it is. All images are in memory at once: 150 kB each.
"""

from pathlib import Path
from typing import Any

import numpy as np

from hpcopt.errors import DataError
from hpcopt.prepare.dataset import DataSet, image_classes

SHORT, SIDE = 256, 224
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
SPLIT_SEED = 20261121


def read(source: Path | None) -> DataSet:
    """All images below a folder, (3, 224, 224), uint8; the classes are the folders' names in alphabetical order.

    Raises:
        DataError: no such folder, no images in it, one cannot be read, or Pillow is missing.
    """
    if source is None or not source.is_dir():
        raise DataError(f"name the folder with a folder of images for each class: --source DIR, not {source}")
    held_out = next((source / name for name in ("val", "test") if (source / name).is_dir()), None)
    if held_out is not None and (source / "train").is_dir():
        found = {"train": _labelled(source / "train"), "test": _labelled(held_out)}
        classes = sorted({name for pairs in found.values() for _, name in pairs})
    else:
        pairs = _labelled(source)
        classes = sorted({name for _, name in pairs})
        order = np.random.default_rng(SPLIT_SEED).permutation(len(pairs))
        cut = max(1, len(pairs) // 10)
        found = {"test": [pairs[i] for i in order[:cut]], "train": [pairs[i] for i in order[cut:]]}
    if not found["train"] or not found["test"]:
        raise DataError(f"{source} has too few images: DIR/CLASS/*.jpg, or DIR/train/CLASS and DIR/val/CLASS")
    train, test = (_load(found[split], classes) for split in ("train", "test"))
    return image_classes(
        train,
        test,
        scale=1 / 255,
        title=f"Photographs of {source.name}, {SIDE}x{SIDE} pixels",
        source=source.name,
        history=f"shorter side to {SHORT} pixels, then the middle {SIDE}x{SIDE}",
        classes=classes,
    )


def _labelled(folder: Path) -> list[tuple[Path, str]]:
    return [(p, p.parent.name) for p in sorted(folder.glob("*/*")) if p.suffix.lower() in SUFFIXES]


def _load(pairs: list[tuple[Path, str]], classes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    try:
        from PIL import Image
    except ImportError as cause:
        raise DataError("images are read by Pillow: `pip install pillow`, or the extra `images`") from cause
    images = np.empty((len(pairs), 3, SIDE, SIDE), np.uint8)
    for row, (path, _) in enumerate(pairs):
        try:
            with Image.open(path) as image:
                images[row] = _cropped(image.convert("RGB")).transpose(2, 0, 1)
        except OSError as cause:
            raise DataError(f"{path} is not an image that can be read ({cause}): take it out") from cause
    return images, np.array([classes.index(name) for _, name in pairs])


def _cropped(image: Any) -> np.ndarray:
    scale = SHORT / min(image.size)
    width, height = (max(SHORT, round(side * scale)) for side in image.size)
    left, top = (width - SIDE) // 2, (height - SIDE) // 2
    return np.asarray(image.resize((width, height)).crop((left, top, left + SIDE, top + SIDE)))
