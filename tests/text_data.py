"""A small text as shards."""

from pathlib import Path

import numpy as np

from hpcopt.prepare.dataset import write_whole
from hpcopt.prepare.text.levels import Level
from hpcopt.prepare.text.make import Tokens, make

WORDS = [
    "the",
    "a",
    "dog",
    "cat",
    "sees",
    "hears",
    "big",
    "small",
    "red",
    "old",
    "and",
    "then",
    "it",
    "runs",
    "away",
    "home",
]


def documents(count: int = 60, seed: int = 0) -> list[str]:
    """Some lines of words, rarer ones less often."""
    draw = np.random.default_rng(seed)
    rarity = 1 / np.arange(1, len(WORDS) + 1)
    return [" ".join(draw.choice(WORDS, draw.integers(5, 12), p=rarity / rarity.sum())) + "." for _ in range(count)]


def write_text(folder: Path, level: Level = "word", count: int = 60) -> Path:
    """Write it; give the folder."""
    write_whole(folder, make(documents(count), Tokens(level, least=1), source="a test"), lambda: False)
    return folder
