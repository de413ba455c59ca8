"""Global batches from data that is best read front to back, in blocks.

The rows are cut into lanes of consecutive ones, and every batch takes as many rows from each lane. A lane goes through
its blocks in an order that is new every epoch, and through the rows of a block in a new order. A rank reads its own
lanes: a contiguous part of the data, a block of each lane in memory at a time. What a batch holds depends on
(seed, step) alone, so a run resumes anywhere, and on any number of ranks. (More ranks than lanes share lanes, and then
read the same blocks.)
"""

import math
from collections.abc import Iterator

import numpy as np

from hpcopt.store.sentence_pairs import SentencePairs

MOST_LANES = 128
LEAST_ROWS = 16  # of a lane in a batch, if the batch allows: with fewer, cutting and joining costs more than reading

Rows = dict[str, np.ndarray]


class Streams:
    """The global batches of a data set of sentence pairs."""

    def __init__(self, pairs: SentencePairs, batch: int, seed: int) -> None:
        self._pairs, self._seed = pairs, seed
        self._lanes = math.gcd(batch, MOST_LANES)
        while self._lanes > 1 and batch < LEAST_ROWS * self._lanes:
            self._lanes //= 2
        self._each = batch // self._lanes  # rows of a lane in a batch
        self._length = len(pairs) // self._lanes

    @property
    def steps_per_epoch(self) -> int:
        """Complete batches in an epoch."""
        return self._length // self._each

    def batches(self, rank: int, size: int, start: int) -> Iterator[tuple[int, np.ndarray, Rows]]:
        """Give (epoch, row numbers, rows) of a rank's part of every batch from step ``start`` on, for ever."""
        places = np.array_split(np.arange(self._lanes * self._each), size)[rank]
        first, stop = places[0], places[-1] + 1
        lanes = range(first // self._each, (stop - 1) // self._each + 1)
        skip, take = first - lanes[0] * self._each, stop - first
        epoch, step = divmod(start, self.steps_per_epoch)
        while True:
            parts = [self._lane(lane, epoch, step) for lane in lanes]
            for _ in range(step, self.steps_per_epoch):
                pieces = [next(part) for part in parts]
                numbers = np.concatenate([n for n, _ in pieces])[skip : skip + take]
                rows = {k: np.concatenate([r[k] for _, r in pieces])[skip : skip + take] for k in pieces[0][1]}
                yield epoch, numbers, rows
            epoch, step = epoch + 1, 0

    def _lane(self, lane: int, epoch: int, step: int) -> Iterator[tuple[np.ndarray, Rows]]:
        """A lane's rows of every batch from a step of an epoch on."""
        draw = np.random.default_rng([self._seed, epoch, lane])
        blocks = self._pairs.blocks(lane * self._length, (lane + 1) * self._length)
        skip = step * self._each
        numbers = np.empty(0, np.int64)
        rows: Rows = {}
        for place in draw.permutation(len(blocks)):
            block = blocks[place]
            order = draw.permutation(block.rows)[skip:]
            skip = max(0, skip - block.rows)
            if not len(order):
                continue
            fresh = self._pairs.read(block)
            rows = {k: np.concatenate([rows[k], v[order]]) if len(numbers) else v[order] for k, v in fresh.items()}
            numbers = np.concatenate([numbers, block.first + order])
            whole = len(numbers) - len(numbers) % self._each
            for at in range(0, whole, self._each):
                yield numbers[at : at + self._each], {k: v[at : at + self._each] for k, v in rows.items()}
            numbers, rows = numbers[whole:], {k: v[whole:].copy() for k, v in rows.items()}
