"""Who owns which part of a flat tensor."""

import math
from collections.abc import Sequence
from functools import lru_cache

from hpcopt.compress import Codec
from hpcopt.errors import UnsupportedError
from hpcopt.kernels.cut import Cut


@lru_cache(maxsize=4096)  # buckets are the same in every step
def shards(n: int, owners: int, grain: int = 1) -> tuple[slice, ...]:
    """Cut n values into one stretch an owner, nearly equal, each beginning at a multiple of ``grain``; the last ones
    may be empty.
    """
    return tuple(Cut.of(n, owners, grain).stretches())


def grain(codec: Codec) -> int:
    """Multiples of what a codec's input may be cut at: its buckets, and whole words of bits.

    Raises:
        UnsupportedError: on all ranks; the codec's buckets have no length.
    """
    bucket = getattr(codec, "bucket", 1)
    if not isinstance(bucket, int) or bucket < 1:
        raise UnsupportedError(
            f"{codec.name}: a codec's field bucket is a number of values, at least 1, not {bucket!r}"
        ).everywhere()
    return math.lcm(64, bucket)


def longest(stretches: Sequence[slice]) -> int:
    """Values in the longest stretch."""
    return max((s.stop - s.start for s in stretches), default=0)
