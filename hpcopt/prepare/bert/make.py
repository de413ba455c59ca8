"""The ranks together turn text into shards. A shard is made by one rank, from its own documents and its own random
numbers, so the bytes are the same at any number of ranks.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpcopt import __version__
from hpcopt.comm.world import World
from hpcopt.errors import DataError
from hpcopt.prepare.bert import words as vocabulary
from hpcopt.prepare.bert.pairs import Pair, Sentences, pairs
from hpcopt.prepare.bert.text import documents
from hpcopt.store.files import remove
from hpcopt.store.hdf5 import CONVENTIONS
from hpcopt.store.sentence_pairs import write_pairs
from hpcopt.workloads.masking import mask_tokens

VOCABULARY = "vocab.txt"


@dataclass(frozen=True)
class Recipe:
    """What to make.

    Attributes:
        text: files and folders; none means the English that Python carries.
        vocabulary: a file of word pieces; None trains one of ``words`` pieces.
        sequences: lengths; each gets a folder.
        shards: training files of each length; for testing there is one for every ten of them.
        passes: times that a document is gone through, each with other pairs and other hidden tokens.
        test_share: share of the documents that is kept for testing.
        masked: write the layout with hidden tokens, and not the one that hides them at run time.
        seed: of everything random.
    """

    text: Sequence[Path] = ()
    vocabulary: Path | None = None
    words: int = 4096
    sequences: Sequence[int] = (128, 512)
    shards: int = 16
    passes: int = 5
    test_share: float = 0.05
    masked: bool = True
    seed: int = 0


def make(recipe: Recipe, folder: Path, world: World) -> None:
    """Fill a folder, which appears whole or not at all: vocab.txt, and SEQUENCE/train and SEQUENCE/test with shards.

    Every rank goes through all text once, and holds the documents of its own shards. Collective.

    Raises:
        DataError: on all ranks: the text or the vocabulary is missing or unfit, or the folder cannot be written.
    """
    fresh = folder.with_name(f".{folder.name}.tmp")
    with world.together():
        if world.rank == 0:
            _start(recipe, fresh)
    test_shards = -(-recipe.shards // 10)
    with world.together():
        encoder = vocabulary.Encoder(vocabulary.read(fresh / VOCABULARY))
        mine = range(world.rank, recipe.shards + test_shards, world.size)
        for shard, texts in _share(recipe, test_shards, mine).items():
            split, number = ("train", shard) if shard < recipe.shards else ("test", shard - recipe.shards)
            encoded = list(encoder.encode(texts))
            for sequence in recipe.sequences:
                _write(recipe, encoder, encoded, shard, sequence, fresh / str(sequence) / split / f"{number:05d}.hdf5")
    with world.together():
        if world.rank == 0:
            for sequence in recipe.sequences:
                for split in ("train", "test"):
                    if not list((fresh / str(sequence) / split).glob("*.hdf5")):
                        raise DataError(
                            f"the text is too short for a {split} split: give more of it, or fewer --shards"
                        )
            remove(folder)
            fresh.rename(folder)


def _start(recipe: Recipe, fresh: Path) -> None:
    remove(fresh)
    if recipe.vocabulary is not None:
        pieces = vocabulary.read(recipe.vocabulary)
    else:
        pieces = vocabulary.train((" ".join(document) for document in documents(recipe.text)), recipe.words)
    try:
        for sequence in recipe.sequences:
            for split in ("train", "test"):
                (fresh / str(sequence) / split).mkdir(parents=True)
        (fresh / VOCABULARY).write_text("".join(f"{piece}\n" for piece in pieces), encoding="utf-8")
    except OSError as cause:
        raise DataError(f"cannot write {fresh} ({cause}): name a writable folder with --data-dir") from cause


def _share(recipe: Recipe, test_shards: int, mine: Iterable[int]) -> dict[int, list[list[str]]]:
    """The documents of each of my shards; where a document goes is drawn from its number."""
    shares: dict[int, list[list[str]]] = {shard: [] for shard in mine}
    for number, document in enumerate(documents(recipe.text)):
        digest = hashlib.blake2b(f"{recipe.seed} {number}".encode(), digest_size=16).digest()
        for_test = int.from_bytes(digest[:8]) < recipe.test_share * 2**64
        lot = int.from_bytes(digest[8:])
        shard = recipe.shards + lot % test_shards if for_test else lot % recipe.shards
        if shard in shares:
            shares[shard].append(document)
    return shares


def _write(
    recipe: Recipe,
    encoder: vocabulary.Encoder,
    encoded: Sequence[Sentences],
    shard: int,
    sequence: int,
    path: Path,
) -> None:
    draw = np.random.default_rng([recipe.seed, shard, sequence])
    made = [pair for _ in range(recipe.passes) for pair in pairs(encoded, sequence, draw)]
    if not made:
        return
    order = draw.permutation(len(made))
    arrays = _arrays([made[row] for row in order], sequence, encoder.numbers)
    if recipe.masked:
        arrays = _masked(arrays, encoder.numbers, seed=recipe.seed * 1_000_003 + shard)
    attributes = {
        "Conventions": CONVENTIONS,
        "title": f"Sentence pairs for BERT, {sequence} tokens",
        "hpcopt_version": __version__,
        "seed": recipe.seed,
        "words": len(encoder.numbers),
    }
    write_pairs(path, arrays, attributes)


def _arrays(made: Sequence[Pair], sequence: int, numbers: dict[str, int]) -> dict[str, np.ndarray]:
    """[CLS] first [SEP] second [SEP], padded with 0, in the layout whose tokens are not hidden."""
    start, end = numbers[vocabulary.START], numbers[vocabulary.END]
    input_ids = np.zeros((len(made), sequence), np.int32)
    special = np.zeros((len(made), 3), np.int32)
    for row, pair in enumerate(made):
        tokens = [start, *pair.first, end, *pair.second, end]
        input_ids[row, : len(tokens)] = tokens
        special[row] = 0, len(pair.first) + 1, len(tokens) - 1
    labels = np.array([pair.is_random for pair in made], np.int8)
    return {"input_ids": input_ids, "special_token_positions": special, "next_sentence_labels": labels}


def _masked(arrays: dict[str, np.ndarray], numbers: dict[str, int], seed: int) -> dict[str, np.ndarray]:
    special, rows = arrays["special_token_positions"], np.arange(len(arrays["input_ids"]))
    mask_id = numbers[vocabulary.MASK]
    hidden = mask_tokens(arrays["input_ids"], special, rows, seed=seed, epoch=0, words=len(numbers), mask_id=mask_id)
    places = np.arange(arrays["input_ids"].shape[1])
    return {
        "input_ids": hidden.input_ids,
        "input_mask": places <= special[:, 2:],
        "segment_ids": (places > special[:, 1:2]) & (places <= special[:, 2:]),
        "masked_lm_positions": hidden.positions,
        "masked_lm_ids": hidden.ids,
        "next_sentence_labels": arrays["next_sentence_labels"],
    }
