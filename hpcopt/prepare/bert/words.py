"""The vocabulary: word pieces, trained on the text or taken from a file."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from hpcopt.errors import DataError
from hpcopt.store.sentence_pairs import read_vocabulary

PAD, UNKNOWN, START, END, MASK = SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def train(texts: Iterable[str], size: int) -> list[str]:
    """Train a vocabulary of at most ``size`` pieces, lower-case. The same text gives the same vocabulary.

    Raises:
        DataError: the library is missing, or the text has more different characters than fit.
    """
    from tokenizers import trainers

    texts = list(texts)
    tokenizer = _tokenizer(dict(zip(SPECIAL, range(len(SPECIAL)), strict=True)))
    normalise = tokenizer.normalizer.normalize_str
    letters = sorted({letter for text in texts for letter in normalise(text) if not letter.isspace()})
    # The library numbers characters in the order of a hash table, and breaks ties by number: named here, in order, they
    # keep their places, and the same text gives the same vocabulary in every process.
    fixed = [*SPECIAL, *letters, *(f"##{letter}" for letter in letters)]
    if len(fixed) >= size:
        raise DataError(f"the text has {len(letters)} different characters: --words must be more than {len(fixed)}")
    tokenizer.train_from_iterator(
        texts, trainers.WordPieceTrainer(vocab_size=size, special_tokens=fixed, show_progress=False)
    )
    numbers: dict[str, int] = tokenizer.get_vocab()
    return sorted(numbers, key=lambda word: numbers[word])


def read(path: Path) -> list[str]:
    """Read a vocabulary, a piece a line.

    Raises:
        DataError: no such file, or it is not a vocabulary of word pieces.
    """
    words = read_vocabulary(path)
    missing = [special for special in SPECIAL if special not in words]
    if missing or words[0] != PAD:
        raise DataError(f"{path} is not a vocabulary for BERT: a piece a line, {PAD} first, with {', '.join(SPECIAL)}")
    return words


class Encoder:
    """Turns sentences into the numbers of word pieces, lower-case."""

    def __init__(self, words: list[str]) -> None:
        self.numbers = {word: number for number, word in enumerate(words)}
        self._tokenizer = _tokenizer(self.numbers)

    def encode(self, documents: list[list[str]]) -> Iterator[list[list[int]]]:
        """Each document as the numbers of each of its sentences; empty sentences and documents are left out."""
        for document in documents:
            encoded = [e.ids for e in self._tokenizer.encode_batch_fast(document, add_special_tokens=False)]
            if sentences := [ids for ids in encoded if ids]:
                yield sentences


def _tokenizer(numbers: dict[str, int]) -> Any:
    try:
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    except ImportError as cause:
        raise DataError(
            "word pieces need the library tokenizers: `pip install tokenizers`, or the extra `text`"
        ) from cause
    tokenizer = Tokenizer(models.WordPiece(numbers, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer
