"""Inputs out of files: arrays of numpy's, and pictures."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hpcopt.errors import DataError, UnsupportedError

PICTURES = (".png", ".jpg", ".jpeg", ".bmp")


def read_files(paths: Sequence[Path], channels: int) -> Tensor:
    """All inputs of files one after the other, (n, ...): uint8 of pictures, (n, channels, height, width).

    Args:
        paths: of .npy files, each with inputs (m, ...), or of pictures.
        channels: that pictures get: 1 is grey, 3 is red, green and blue.

    Raises:
        DataError: a file cannot be read, holds no numbers, or its inputs have another shape than the others'.
        UnsupportedError: pictures need pillow, which is not installed.
    """
    arrays = [_picture(path, channels) if path.suffix.lower() in PICTURES else _array(path) for path in paths]
    for path, array in zip(paths, arrays, strict=True):
        if array.shape[1:] != arrays[0].shape[1:] or array.dtype != arrays[0].dtype:
            one, other = (f"shape {each.shape[1:]}, {each.dtype}" for each in (array, arrays[0]))
            raise DataError(f"{path} has inputs of {one}, and {paths[0]} of {other}: explain them apart")
    return torch.from_numpy(np.concatenate(arrays))


def _array(path: Path) -> np.ndarray:
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as cause:
        raise DataError(f"cannot read inputs from {path}: {cause}; it should be a .npy file or a picture") from cause
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "uif" or found.ndim < 2 or not found.size:
        raise DataError(f"{path} holds no numbers of shape (n, ...)")
    if found.dtype.kind == "f":
        if not np.isfinite(found).all():
            raise DataError(f"{path} holds values that are not finite")
        return found.astype(np.float32)
    return found if found.dtype == np.uint8 else found.astype(np.int64)


def _picture(path: Path, channels: int) -> np.ndarray:
    try:
        from PIL import Image
    except ImportError as cause:
        raise UnsupportedError(
            f"pictures need pillow ({cause}): `pip install pillow`, or the extra `images`"
        ) from cause
    try:
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("L" if channels == 1 else "RGB"))
    except (OSError, ValueError) as cause:
        raise DataError(f"cannot read the picture {path}: {cause}") from cause
    return pixels[None, None] if channels == 1 else pixels.transpose(2, 0, 1)[None].copy()
