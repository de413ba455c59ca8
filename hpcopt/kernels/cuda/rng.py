"""The random numbers of ``hpcopt.kernels.rng``: value i of a seed is a hash of (seed, i) in 32 bits."""

import triton
import triton.language as tl

GOLDEN = tl.constexpr(0x9E3779B9)
MIX1 = tl.constexpr(0x7FEB352D)
MIX2 = tl.constexpr(0x846CA68B)
WORD = 1 << 32


def words(seed: int, first: int) -> tuple[int, int]:
    """What a kernel draws from, as int32: the counter of the value with index ``first``, and the seed's upper half."""
    counter = (first * GOLDEN.value + seed) % WORD
    return _signed(counter), _signed((seed >> 32) % WORD)


def _signed(word: int) -> int:
    return word - WORD if word >= WORD // 2 else word


@triton.jit
def draw(start, high, i):
    """32 random bits, the upper 24 good ones, for the values i (any shape) after that of counter ``start``."""
    counter = start.to(tl.uint32) + i.to(tl.uint32) * GOLDEN
    h = (counter ^ (counter >> 16)) * MIX1
    h = h + high.to(tl.uint32)
    return (h ^ (h >> 15)) * MIX2
