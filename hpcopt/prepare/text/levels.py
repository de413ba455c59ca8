"""What a token of a text is: a byte, a word, or a piece of one.

A ``Vocabulary`` is made of the documents to train on alone. The last token of every document is END. Bytes and word
pieces lose nothing of a text; words are in lower case, and those that are not in the vocabulary are UNKNOWN.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from hpcopt.errors import DataError

Level = Literal["byte", "word", "subword"]
LEVELS: tuple[Level, ...] = get_args(Level)
END, UNKNOWN = b"<eos>", b"<unk>"
_WORD = re.compile(r"\w+(?:'\w+)*|[^\w\s]")
LONGEST = 64  # bytes of a word


class Vocabulary(NamedTuple):
    """The tokens of a level.

    Attributes:
        texts: of each token; those of words in descending order of their number in the text.
        encode: gives a document's tokens without its END, int64.
        end: number of END.
        lossless: whether the tokens of a document are all of its bytes.
    """

    texts: Sequence[bytes]
    encode: Callable[[str], np.ndarray]
    end: int
    lossless: bool


def vocabulary(level: Level, documents: Sequence[str], words: int | None, least: int) -> Vocabulary:
    """Make a vocabulary.

    Args:
        level: what a token is.
        documents: to train on.
        words: most tokens that are words or pieces; None: all words, 8192 pieces.
        least: occurrences of a word that is one of them.

    Raises:
        DataError: the library for pieces is missing, or there are to be fewer than the 256 that bytes take.
    """
    if level == "byte":
        return Vocabulary([bytes([b]) for b in range(256)] + [END], _bytes, 256, lossless=True)
    return _words(documents, words, least) if level == "word" else _pieces(documents, words or 8192)


def words_of(text: str) -> list[str]:
    """Words and marks, in lower case.

    >>> words_of("Don't: the dog's 2 eyes.")
    ["don't", ':', 'the', "dog's", '2', 'eyes', '.']
    """
    return _WORD.findall(text.lower())


def _bytes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8).astype(np.int64)


def _words(documents: Sequence[str], most: int | None, least: int) -> Vocabulary:
    counts = Counter(word for text in documents for word in words_of(text))
    known = [word for word, n in counts.items() if n >= least and len(word.encode()) <= LONGEST]
    known.sort(key=lambda word: (-counts[word], word))
    texts = [UNKNOWN, END, *(word.encode() for word in known[:most])]
    numbers = {text.decode(): number for number, text in enumerate(texts[2:], 2)}

    def encode(text: str) -> np.ndarray:
        return np.array([numbers.get(word, 0) for word in words_of(text)], np.int64)

    return Vocabulary(texts, encode, 1, lossless=False)


def _pieces(documents: Sequence[str], size: int) -> Vocabulary:
    """Byte pair encoding on bytes (Sennrich et al. 2016, arXiv:1508.07909; Radford et al. 2019)."""
    try:
        from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    except ImportError as cause:
        raise DataError(
            "word pieces need the library tokenizers: `pip install tokenizers`, or the extra `text`"
        ) from cause
    if size < 257:
        raise DataError(f"--words {size}: pieces are made of the 256 bytes, and need more than 256")
    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=letters, show_progress=False)
    tokenizer.train_from_iterator(documents, trainer)
    numbers: dict[str, int] = tokenizer.get_vocab()
    of_letter = _bytes_of_letters()
    texts = [bytes(of_letter[c] for c in piece) for piece in sorted(numbers, key=lambda piece: numbers[piece])]

    def encode(text: str) -> np.ndarray:
        return np.array(tokenizer.encode(text, add_special_tokens=False).ids, np.int64)

    return Vocabulary([*texts, END], encode, len(texts), lossless=True)


def _bytes_of_letters() -> dict[str, int]:
    """The byte that each letter of the library's pieces stands for: itself, where that can be printed, else the next
    letter from 256 on.
    """
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printed]
    return {chr(b): b for b in printed} | {chr(256 + n): b for n, b in enumerate(others)}
