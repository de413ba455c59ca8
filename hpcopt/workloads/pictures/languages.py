"""Sets of pictures of zeros and ones: who is a member, and members and others drawn at random at any size."""

from typing import Literal

import numpy as np

Language = Literal["bars_and_stripes", "shifting_bits", "shifting_bits_zero", "shifting_bits_cyclic"]
Size = tuple[int, int]  # rows, columns


def is_member(language: Language, pictures: np.ndarray) -> np.ndarray:
    """Which pictures, (..., rows, columns), belong to a language, (...), bool.

    >>> bar = np.array([[0, 1, 1], [0, 1, 1]])
    >>> bool(is_member("bars_and_stripes", bar)), bool(is_member("shifting_bits", bar))
    (True, False)
    """
    above, below = pictures[..., :-1, :], pictures[..., 1:, :]
    match language:
        case "bars_and_stripes":
            same = (pictures[..., 1:] == pictures[..., :-1]).all((-2, -1)) | (above == below).all((-2, -1))
        case "shifting_bits_cyclic":
            same = (np.roll(above, 1, -1) == below).all((-2, -1))
        case _:
            same = (above[..., :-1] == below[..., 1:]).all((-2, -1))
            if language == "shifting_bits_zero":
                same &= (below[..., 0] == 0).all(-1)
    return np.asarray(same)


def member(language: Language, size: Size, generator: np.random.Generator) -> np.ndarray:
    """A member, (rows, columns), uint8: its free pixels are fair coins."""
    rows, columns = size
    if language == "bars_and_stripes":
        if generator.integers(2):
            return np.broadcast_to(coins(generator, columns), size).copy()
        return np.broadcast_to(coins(generator, rows)[:, None], size).copy()
    if language == "shifting_bits_cyclic":
        first = coins(generator, columns)
        return np.stack([np.roll(first, row) for row in range(rows)])
    entering = np.zeros(rows - 1, np.uint8) if language == "shifting_bits_zero" else coins(generator, rows - 1)
    diagonals = np.concatenate([entering, coins(generator, columns)])
    return np.stack([diagonals[rows - 1 - row :][:columns] for row in range(rows)])


def other(language: Language, size: Size, near: float, generator: np.random.Generator) -> np.ndarray:
    """A picture that is no member, (rows, columns), uint8: with probability ``near`` a member with one pixel turned
    round, else fair coins.
    """
    beside = generator.random() < near
    while True:
        if beside:
            picture = member(language, size, generator)
            picture[generator.integers(size[0]), generator.integers(size[1])] ^= 1
        else:
            picture = coins(generator, size)
        if not is_member(language, picture):
            return picture


def coins(generator: np.random.Generator, shape: int | Size) -> np.ndarray:
    """Fair ones, uint8."""
    return generator.integers(0, 2, shape, np.uint8)
