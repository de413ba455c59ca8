"""Random numbers of a counter, not of a stream: value i of a seed is the same however the work is cut into buckets or
threads.

The generator is a Weyl sequence through a two-multiplication integer hash (the lowbias32 constants of Wellons'
hash-prospector), with a second seed word added half way, so that 64 bits of seed count.
"""

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

GOLDEN = np.uint32(0x9E3779B9)
MIX1 = np.uint32(0x7FEB352D)
MIX2 = np.uint32(0x846CA68B)

BLOCK = 512  # values that a loop handles at once; they stay in the first-level cache
RAMP = np.arange(BLOCK, dtype=np.uint32) * GOLDEN  # a table saves one multiplication a value


@njit(inline="always")
def words(seed):
    """The two 32-bit halves of a 64-bit seed."""
    return np.uint32(seed & 0xFFFFFFFF), np.uint32((seed >> 32) & 0xFFFFFFFF)


@njit(inline="always")
def start(first, low):
    """The Weyl counter of a block whose first value has index ``first``; add RAMP[j] for the others."""
    return np.uint32(np.uint32(np.uint32(first) * GOLDEN) + low)


@njit(inline="always")
def mix(counter, high):
    """32 random bits, of which the upper 24 are good."""
    h = np.uint32(counter)
    h = np.uint32(np.uint32(h ^ np.uint32(h >> np.uint32(16))) * MIX1)
    h = np.uint32(h + high)
    return np.uint32(np.uint32(h ^ np.uint32(h >> np.uint32(15))) * MIX2)


@njit(inline="always")
def uniform(index, low, high):
    """A float64 in [0, 1) of 32 random bits, a function of (seed, index) alone."""
    h = mix(start(index, low), high)
    return np.float64(np.uint32(h ^ np.uint32(h >> np.uint32(16)))) * 2.0**-32


@intrinsic
def shift_right(typingctx, value, count):
    """``value >> count`` of an int32 or uint32 in 32 bits, with 0 <= count < 32; numba's own would widen to 64 and
    halve the speed.
    """

    def codegen(context, builder, signature, args):
        shift = builder.ashr if signature.return_type.signed else builder.lshr
        return shift(*args)

    return value(value, types.uint32), codegen
