"""Sentence pairs for BERT in the HDF5 layouts that are in circulation: shards made elsewhere are read as they are.

Six arrays a file, as NVIDIA's tools write it: tokens already hidden. Or three arrays, as KAISA's experiments used it:
tokens as they are, to be hidden at run time. Any number of ``*.hdf5`` in a folder, taken in the order of their paths;
compression and chunks are HDF5's business. Which layout a file has, its keys say.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from hpcopt.errors import DataError
from hpcopt.store import hdf5

BLOCK_ROWS = 512
REMAKE = "make it again, for example with `python -m hpcopt.prepare bert --force`"
BINARY = {"input_mask", "segment_ids", "next_sentence_labels"}
EMPTY = np.empty(0, np.int64)

# name -> (dtype, dimensions of a row: "s" the sequence, "p" the tokens to predict)
MASKED = {
    "input_ids": ("i4", "s"),
    "input_mask": ("i1", "s"),
    "segment_ids": ("i1", "s"),
    "masked_lm_positions": ("i4", "p"),
    "masked_lm_ids": ("i4", "p"),
    "next_sentence_labels": ("i1", ""),
}
UNMASKED = {
    "input_ids": ("i4", "s"),
    "special_token_positions": ("i4", "3"),
    "next_sentence_labels": ("i1", ""),
}


class Block(NamedTuple):
    """Consecutive rows of one file, which are read in one go."""

    file: int
    start: int  # in the file
    rows: int
    first: int  # in the data set


def write_pairs(path: Path, arrays: Mapping[str, np.ndarray], attributes: Mapping[str, Any]) -> None:
    """Write a shard in the layout that its names say. The same content gives the same bytes.

    Args:
        path: appears when the file is whole.
        arrays: those of MASKED or of UNMASKED, each (n, ...).
        attributes: provenance, for the root of the file.
    """
    layout = MASKED if arrays.keys() == MASKED.keys() else UNMASKED
    with hdf5.create(path) as file:
        hdf5.set_attributes(file, attributes)
        for name, (dtype, _) in layout.items():
            values = arrays[name].astype(dtype)
            chunks = (min(len(values), BLOCK_ROWS), *values.shape[1:])
            file.create_dataset(name, data=values, dtype=dtype, chunks=chunks, compression="gzip", shuffle=True)


def read_vocabulary(path: Path) -> list[str]:
    """The word pieces of a file, a line each; a line ends at a line feed, and at none of the other characters that
    Unicode lets end one.

    Raises:
        DataError: it cannot be read, or is not UTF-8.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as cause:
        raise DataError(f"cannot read the vocabulary {path} ({cause})") from cause
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]


class SentencePairs:
    """The rows of all shards in a folder. Opens headers only; values are read a block at a time.

    Attributes:
        masked: whether tokens are already hidden.
        sequence: tokens in a row.

    Raises:
        DataError: no shards, or one is truncated, lacks an array, or does not fit the others.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()  # a part of a job may change the working directory
        self._files = sorted(self.folder.rglob("*.hdf5"))
        if not self._files:
            raise DataError(
                f"no *.hdf5 in {folder}: make them with `python -m hpcopt.prepare bert`, or name another folder"
            )
        self._rows, self._block_rows = [], []
        self._made_with: list[int | None] = []  # words of the vocabulary; other tools' shards do not say
        for number in range(len(self._files)):
            with self._open(number) as file:
                if number == 0:
                    self.masked = "special_token_positions" not in file
                    self.sequence = (
                        file["input_ids"].shape[-1] if "input_ids" in file and file["input_ids"].shape else 0
                    )
                self._check(number, file)
                self._made_with.append(int(file.attrs["words"]) if "words" in file.attrs else None)
                self._rows.append(len(file["input_ids"]))
                chunks = file["input_ids"].chunks
                self._block_rows.append(max(BLOCK_ROWS, chunks[0] if chunks else 0))
        self._starts = np.cumsum([0, *self._rows])

    def __len__(self) -> int:
        """Rows of all shards."""
        return int(self._starts[-1])

    def blocks(self, first: int, stop: int) -> list[Block]:
        """The blocks that rows first to stop lie in, cut to these rows, in order."""
        found = []
        for number, (start, rows, step) in enumerate(zip(self._starts, self._rows, self._block_rows, strict=False)):
            low, high = max(first - start, 0), min(stop - start, rows)
            for edge in range(low - low % step, high if low < high else 0, step):
                top = max(edge, low)
                found.append(Block(number, int(top), int(min(edge + step, high) - top), int(start + top)))
        return found

    def read(self, block: Block) -> dict[str, np.ndarray]:
        """The arrays of a block by name, each (block.rows, ...).

        Raises:
            DataError: the block is damaged.
        """
        return {name: values.astype(self._layout[name][0], copy=False) for name, values in self._raw(block).items()}

    def _raw(self, block: Block) -> dict[str, np.ndarray]:
        with self._open(block.file) as file:
            return {name: file[name][block.start : block.start + block.rows] for name in self._layout}

    def verify(self, words: int, part: int = 0, parts: int = 1) -> None:
        """Read the files part, part + parts, ..., so that the ranks of a job can share the work.

        Raises:
            DataError: a file is damaged, has words that a vocabulary of so many lacks, places outside of a sequence or
                other values that no such array has, or says that it was made with another vocabulary.
        """
        for path, made_with in list(zip(self._files, self._made_with, strict=True))[part::parts]:
            if made_with not in (None, words):
                raise DataError(
                    f"{path} was made with {made_with} words, but the vocabulary has {words} words: "
                    "name the one that the data was made with, [workload] vocabulary"
                )
        for block in self.blocks(0, len(self)):
            if block.file % parts == part:
                self._check_values(block, words)

    def _check_values(self, block: Block, words: int) -> None:
        path, values = self._files[block.file], self._raw(block)
        for name, (least, most) in {
            "input_ids": (0, words - 1),
            "masked_lm_ids": (0, words - 1),
            "masked_lm_positions": (0, self.sequence - 1),
            "special_token_positions": (0, self.sequence - 1),
        }.items():
            low, high = (values[name].min(), values[name].max()) if values.get(name, EMPTY).size else (least, most)
            if low >= least and high <= most:
                continue
            worst = low if low < least else high
            if name.endswith("_ids"):
                raise DataError(
                    f"{path} has word {worst} in {name}, but the vocabulary has {words} words: "
                    "name the one that the data was made with, [workload] vocabulary"
                )
            raise DataError(f"{path} has place {worst} in {name}, in sequences of {self.sequence} tokens: {REMAKE}")
        for name in BINARY & values.keys():
            if values[name].size and (values[name].min() < 0 or values[name].max() > 1):
                raise DataError(
                    f"{path} has {name} of {values[name].min()} to {values[name].max()}, not 0 and 1: {REMAKE}"
                )
        if not self.masked and not (np.diff(values["special_token_positions"].astype(np.int64), axis=1) > 0).all():
            raise DataError(f"{path} has special_token_positions that do not ascend: {REMAKE}")

    @property
    def _layout(self) -> dict[str, tuple[str, str]]:
        return MASKED if self.masked else UNMASKED

    def _open(self, number: int) -> Any:
        return hdf5.reading(self._files[number], DataError, REMAKE)

    def _check(self, number: int, file: h5py.File) -> None:
        path = self._files[number]
        missing = self._layout.keys() - file.keys()
        if missing:
            raise DataError(
                f"{path} lacks {', '.join(sorted(missing))}: a shard has {', '.join(MASKED)}, or {', '.join(UNMASKED)}"
            )
        sizes: dict[str, int] = {"3": 3}
        for name, (_, dims) in self._layout.items():
            array = file[name]
            if not isinstance(array, h5py.Dataset) or array.dtype.kind not in "iub" or array.ndim != 1 + len(dims):
                found = f"{array.dtype} of shape {array.shape}" if isinstance(array, h5py.Dataset) else "no array"
                raise DataError(
                    f"{path}: {name} is {found}, not integers of shape ({', '.join(['n', *dims])}): {REMAKE}"
                )
            if dims and array.shape[1] != sizes.setdefault(dims, array.shape[1]):
                raise DataError(f"{path}: {name} has {array.shape[1]} entries a row, not {sizes[dims]}: {REMAKE}")
        if len({len(file[name]) for name in self._layout}) > 1:
            raise DataError(f"{path}: its arrays differ in length")
        if file["input_ids"].shape[1] != self.sequence:
            raise DataError(
                f"{path} has sequences of {file['input_ids'].shape[1]} tokens and {self._files[0]} of {self.sequence}: "
                "keep each length in a folder of its own"
            )
