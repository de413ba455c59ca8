"""Which tokens BERT has to predict (arXiv:1810.04805, appendix A.1): 15 % of them, of which 80 % are replaced by
[MASK], 10 % by a random word, 10 % stay.

What is drawn for a sequence is a function of (seed, epoch, row) alone, by counters and not by a generator's state: any
rank can make any row's mask, all rows of a block at once.
"""

from typing import NamedTuple

import numpy as np

PREDICTED = 0.15


class Masked(NamedTuple):
    """Sequences with tokens hidden, and what was there.

    Attributes:
        input_ids: (n, s), int32.
        positions: places of the hidden tokens in ascending order, padded with 0, (n, p), int32.
        ids: what was there, padded with 0, (n, p), int32.
    """

    input_ids: np.ndarray
    positions: np.ndarray
    ids: np.ndarray


def most_predicted(sequence: int) -> int:
    """Places for predicted tokens in a sequence of so many tokens: 20 of 128, 80 of 512, as published."""
    return -(-sequence * 5 // 32)


def predicted(special_token_positions: np.ndarray, sequence: int) -> np.ndarray:
    """How many tokens of each sequence are hidden, (n,), given the places of [CLS], [SEP] and [SEP], (n, 3)."""
    tokens = special_token_positions[:, 2] - 2
    return np.clip(np.rint(PREDICTED * tokens), 1, most_predicted(sequence)).astype(np.int64)


def mask_tokens(
    input_ids: np.ndarray,
    special_token_positions: np.ndarray,
    rows: np.ndarray,
    *,
    seed: int,
    epoch: int,
    words: int,
    mask_id: int,
) -> Masked:
    """Hide tokens.

    Args:
        input_ids: (n, s), int32.
        special_token_positions: places of [CLS], [SEP] and [SEP], (n, 3).
        rows: number of each sequence in its data set, (n,).
        seed: as of the job.
        epoch: the same row is masked differently in another epoch.
        words: size of the vocabulary.
        mask_id: number of [MASK].
    """
    sequence = input_ids.shape[1]
    places = np.arange(sequence)
    counters = rows.astype(np.uint64)[:, None] * np.uint64(sequence) + places.astype(np.uint64)
    lots = _mix(counters + _mix(np.array([(seed << 32) + epoch], np.uint64)))
    first, middle, last = special_token_positions.T[:, :, None]
    lots[(places == first) | (places == middle) | (places >= last)] = np.iinfo(np.uint64).max

    most = most_predicted(sequence)
    drawn = np.argpartition(lots, most - 1, axis=1)[:, :most]
    order = np.argsort(np.take_along_axis(lots, drawn, 1), axis=1)
    spare = np.arange(most) >= predicted(special_token_positions, sequence)[:, None]
    positions = np.where(spare, sequence, np.take_along_axis(drawn, order, 1))
    positions.sort(axis=1)
    spare = positions == sequence
    positions[spare] = 0

    there = np.take_along_axis(input_ids, positions, 1)
    fate = _mix(np.take_along_axis(lots, positions, 1))
    tenth, word = fate % np.uint64(10), (fate >> np.uint64(32)) % np.uint64(words)
    becomes = np.where(tenth < 8, mask_id, np.where(tenth < 9, word.astype(np.int64), there))
    hidden = input_ids.copy()
    np.put_along_axis(hidden, positions, np.where(spare, there, becomes).astype(input_ids.dtype), 1)
    return Masked(hidden, positions.astype(np.int32), np.where(spare, 0, there).astype(np.int32))


def _mix(x: np.ndarray) -> np.ndarray:
    """Spread counters over all 64 bits: the output function of SplitMix64 (Steele, Lea, Flood 2014)."""
    x = (x + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed
