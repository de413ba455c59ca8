"""Sentence pairs as BERT was pretrained on (Devlin et al. 2018, arXiv:1810.04805, appendix A.2).

A pair is two runs of whole sentences, the second of which half of the time follows the first in its document and half
of the time comes from another.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

Sentences = Sequence[list[int]]
SHORT = 0.1  # of the sequences are made shorter than they could be, so that long ones are not all the network knows


class Pair(NamedTuple):
    """Two runs of tokens, and whether the second was drawn at random."""

    first: list[int]
    second: list[int]
    is_random: bool


def pairs(documents: Sequence[Sentences], sequence: int, draw: np.random.Generator) -> Iterator[Pair]:
    """Pairs of at most sequence - 3 tokens, from front to back through every document.

    A document may end in a single sentence, which is then paired with one drawn at random.
    """
    for number, document in enumerate(documents):
        start = 0
        while start < len(document):
            room = sequence - 3
            if draw.random() < SHORT:
                room = int(draw.integers(2, room + 1))
            stop = _fill(document, start, room)
            cut = start + 1 if stop - start < 2 else int(draw.integers(start + 1, stop))
            first = [token for sentence in document[start:cut] for token in sentence]
            is_random = len(documents) > 1 and (cut == stop or draw.random() < 0.5)
            if is_random:
                second = _from_another(documents, number, room - len(first), draw)
                start = cut  # what the random run replaced is used in the next pair
            else:
                second = [token for sentence in document[cut:stop] for token in sentence]
                start = stop
            if second:
                yield _truncated(first, second, is_random, room, draw)


def _fill(document: Sentences, start: int, room: int) -> int:
    """Where a run of sentences from start on reaches room tokens, or ends."""
    tokens, stop = 0, start
    while stop < len(document) and tokens < room:
        tokens += len(document[stop])
        stop += 1
    return stop


def _from_another(documents: Sequence[Sentences], not_this: int, room: int, draw: np.random.Generator) -> list[int]:
    other = int(draw.integers(len(documents) - 1))
    document = documents[other + (other >= not_this)]
    start = int(draw.integers(len(document)))
    return [token for sentence in document[start : _fill(document, start, max(room, 1))] for token in sentence]


def _truncated(first: list[int], second: list[int], is_random: bool, room: int, draw: np.random.Generator) -> Pair:
    """Shorten the longer run, at a random end, until both fit."""
    first, second = list(first), list(second)
    while (excess := len(first) + len(second) - room) > 0:
        longer = first if len(first) > len(second) else second
        drop = min(excess, max(1, abs(len(first) - len(second))))
        front = int(draw.integers(drop + 1))
        del longer[:front]
        del longer[len(longer) - (drop - front) :]
    return Pair(first, second, is_random)
