"""Documents -> tokens in shards: ``vocabulary``, ``train``, ``validation`` and ``test``.

Of every EVERY documents, in their order, one is to validate and one to test. So the shares are exact, and every part of
a text has its say in all three.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpcopt.errors import DataError
from hpcopt.prepare.dataset import DataSet
from hpcopt.prepare.text.levels import Level, Vocabulary, vocabulary
from hpcopt.store.shards import About

EVERY = 20
PLACES = {"validation": EVERY // 2 - 1, "test": EVERY - 1}
ROWS_PER_SHARD = 1 << 24


@dataclass(frozen=True)
class Tokens:
    """What tokens to make; arguments of ``vocabulary``."""

    level: Level = "word"
    words: int | None = None
    least: int = 5


def make(documents: Iterable[str], tokens: Tokens, **attributes: Any) -> DataSet:
    """The data set of documents.

    Args:
        documents: in their order.
        tokens: to make of them.
        attributes: title, license and the like.

    Raises:
        DataError: there are too few to be split.
    """
    found = list(documents)
    if len(found) < EVERY:
        raise DataError(
            f"the text has {len(found)} documents, and of every {EVERY} one is to validate and one to test: cut it "
            "otherwise, with --document line, or give more of it"
        )
    split: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for number, document in enumerate(found):
        split[next((name for name, place in PLACES.items() if number % EVERY == place), "train")].append(document)
    known = vocabulary(tokens.level, split["train"], tokens.words, tokens.least)
    numbers = {name: _encoded(known, part) for name, part in split.items()}
    arrays: Mapping[str, Mapping[str, np.ndarray]] = {
        "vocabulary": _table(known, numbers["train"]),
        **{name: {"token": values} for name, values in numbers.items()},
    }
    history = (
        f"of every {EVERY} documents, counted from 0, number {PLACES['validation']} is to validate and number "
        f"{PLACES['test']} to test"
    )
    about = {**attributes, "level": tokens.level, "documents": len(found), "history": history}
    return DataSet(arrays, about, _ABOUT, ROWS_PER_SHARD)


def _encoded(known: Vocabulary, documents: Sequence[str]) -> np.ndarray:
    kind = np.uint16 if len(known.texts) <= 1 << 16 else np.uint32
    return np.concatenate([np.append(known.encode(text), known.end).astype(kind) for text in documents])


def _table(known: Vocabulary, tokens: np.ndarray) -> dict[str, np.ndarray]:
    length = np.array([len(text) for text in known.texts])
    table = np.zeros((len(length), length.max()), np.uint8)
    for row, text in enumerate(known.texts):
        table[row, : len(text)] = np.frombuffer(text, np.uint8)
    stands_for = length.copy() if known.lossless else 0 * length
    stands_for[known.end] = 0
    counts = np.bincount(tokens, minlength=len(length))
    return {
        "text": table,
        "length": length.astype(np.uint16),
        "bytes": stands_for.astype(np.uint16),
        "count": counts.astype(np.uint64),
    }


_ABOUT = {
    "text": About("UTF-8 text of the token, or a part of one, padded with zeros", "1", ("row", "byte")),
    "length": About("bytes of it", "byte", ("row",)),
    "bytes": About("bytes of the original text that the token stands for; 0: not known, or none", "byte", ("row",)),
    "count": About("occurrences in the tokens to train on", "1", ("row",)),
    "token": About("a row of the vocabulary", "1", ("row",)),
}
