"""Tokens of a text, as ``hpcopt prepare text`` writes them: ``vocabulary-*.h5``, ``train-*.h5``,
``validation-*.h5`` and ``test-*.h5``.

A row of the vocabulary has ``text``, ``length``, ``bytes`` and ``count``; a row of the others has ``token``, which is a
row of the vocabulary.
"""

from pathlib import Path

import numpy as np

from hpcopt.errors import DataError
from hpcopt.store.shards import Shards

SPLITS = ("train", "validation", "test")
_VOCABULARY = {"text": 1, "length": 0, "bytes": 0, "count": 0}


class StoredText:
    """A text of v different tokens. Opens headers and the vocabulary; tokens are read where they are asked for.

    Attributes:
        splits: shards of "train", "validation" and "test".
        level: "byte", "word" or "subword".
        words: different tokens, v.
        nbytes: of the original text that each token stands for, (v,), int64; 0 for marks, and for all of a text whose
            tokens lose some of it.
    """

    def __init__(self, folder: Path) -> None:
        """Open it.

        Raises:
            DataError: there is none, or it is damaged.
        """
        self.folder = Path(folder)
        if not self.folder.is_dir():
            self._refuse("there is no such folder")
        self._vocabulary = Shards(folder, "vocabulary")
        self.splits = {split: Shards(folder, split) for split in SPLITS}
        _require_fields(self._vocabulary, _VOCABULARY)
        for shards in self.splits.values():
            _require_fields(shards, {"token": 0})
        self.level = str(self._vocabulary.attributes.get("level", ""))
        self._rows = self._vocabulary.rows(np.arange(len(self._vocabulary)))
        self.words = len(self._vocabulary)
        self.nbytes = self._rows["bytes"].astype(np.int64)

    @property
    def texts(self) -> list[bytes]:
        """UTF-8 text of each token, or a part of one."""
        return [bytes(row[:length]) for row, length in zip(self._rows["text"], self._rows["length"], strict=True)]

    def windows(self, split: str, numbers: np.ndarray, length: int) -> np.ndarray:
        """Tokens of windows: of number n those from ``n * length`` on, one more than ``length``, the first of which is
        the last of the window before; (k, length + 1), int64, -1 where the text has ended.
        """
        shards = self.splits[split]
        places = numbers[:, None] * length + np.arange(length + 1)
        tokens = shards.rows(np.minimum(places, len(shards) - 1).ravel())["token"].astype(np.int64)
        return np.where(places < len(shards), tokens.reshape(places.shape), -1)

    def verify(self, part: int = 0, parts: int = 1) -> None:
        """Compare this rank's share of the files with their checksums, and their tokens with the vocabulary.

        Raises:
            DataError: one does not match.
        """
        for shards in (self._vocabulary, *self.splits.values()):
            shards.verify(part, parts)
        for shards in self.splits.values():
            shards.require_values("token", 0, self.words - 1, part, parts)

    def _refuse(self, what: str) -> None:
        raise DataError(
            f"no text in {self.folder}: {what}. Make it with `hpcopt prepare text PATH... --name {self.folder.name} "
            f"--data-dir {self.folder.parent}`, or `hpcopt prepare gcide`"
        )


def _require_fields(shards: Shards, wanted: dict[str, int]) -> None:
    for name, dims in wanted.items():
        field = shards.fields.get(name)
        if field is None or len(field.shape) != dims or field.dtype.kind not in "ui":
            found = "there is none" if field is None else f"it is {field.dtype} of shape {field.shape}"
            raise DataError(
                f"the {shards.split} data in {shards.folder} should have integers `{name}` in {dims} dimensions a row: "
                f"{found}"
            )
