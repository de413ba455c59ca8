"""Who owns which part of a flat tensor."""

import math
from collections.abc import Sequence
from itertools import pairwise

from hpcopt.compress import Codec


def shards(n: int, owners: int, grain: int = 1) -> list[slice]:
    """Cut n values into one stretch an owner, nearly equal, each beginning at a multiple of ``grain``; the last ones
    may be empty.
    """
    grains = -(-n // grain)
    each, longer = divmod(grains, owners)
    starts = [min(n, grain * (owner * each + min(owner, longer))) for owner in range(owners + 1)]
    return [slice(begin, end) for begin, end in pairwise(starts)]


def grain(codec: Codec) -> int:
    """Multiples of what a codec's input may be cut at: its buckets, and whole words of bits."""
    return math.lcm(64, getattr(codec, "bucket", 1))


def longest(stretches: Sequence[slice]) -> int:
    """Values in the longest stretch."""
    return max((s.stop - s.start for s in stretches), default=0)
