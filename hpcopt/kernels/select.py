"""Selecting the values of largest magnitude: thresholds by radix, then a compaction that skips 64 small values at a
time.

Magnitudes are compared as int32 bits, which order float32 magnitudes and put Inf and NaN on top.
"""

import numpy as np
from numba import njit

from hpcopt.kernels import masks
from hpcopt.kernels.levels import MAGNITUDE

LANES = masks.LANES
NOT_FINITE = np.int32(0x7F800000)


@njit(nogil=True, cache=True)
def kth_largest(bits, k):
    """The k-th largest magnitude (as int32 bits), and how many are above it; 1 <= k <= n. Three counting passes of
    11, 10 and 10 bits.
    """
    prefix, above, wanted = np.int32(0), 0, k
    known = 31
    for width in (11, 10, 10):
        shift = known - width
        counts = np.zeros(1 << width, np.int64)
        field = np.int32((1 << width) - 1)
        for value in bits:
            magnitude = np.int32(value & MAGNITUDE)
            if magnitude >> known == prefix >> known:
                counts[(magnitude >> shift) & field] += 1
        digit = (1 << width) - 1
        while counts[digit] < wanted:
            wanted -= counts[digit]
            above += counts[digit]
            digit -= 1
        prefix = np.int32(prefix | np.int32(digit << shift))
        known = shift
    return prefix, above


@njit(nogil=True, cache=True)
def sample(bits, run, stride, out):
    """Fill out with the magnitudes (bits) of ``run`` neighbours every ``stride`` values; return how many."""
    count = 0
    for i in range(0, bits.size - run + 1, stride):
        for j in range(run):
            out[count] = np.int32(bits[i + j] & MAGNITUDE)
            count += 1
    return count


@njit(inline="always")
def _keep(bits, i, threshold, ties, indices, count):
    """Append i if its magnitude is above the threshold, or equal to it while ties last; return the new (count,
    ties).
    """
    if np.int32(bits[i] & MAGNITUDE) == threshold:
        if ties == 0:
            return count, ties
        ties -= 1
    if count < indices.size:
        indices[count] = i
    return count + 1, ties


@njit(nogil=True, cache=True)
def compact(bits, threshold, ties, indices):
    """Fill indices, uint32, ascending, with the places of magnitudes above the threshold and the first ``ties`` equal
    to it.

    Returns how many there are; more than indices.size means that the list is cut short there.
    """
    count = 0
    whole = bits.size // LANES
    for k in range(whole):
        word = masks.at_least(bits, k * LANES, threshold)
        while word != 0:
            i = k * LANES + masks.trailing_zeros(word)
            word &= word - np.uint64(1)
            count, ties = _keep(bits, i, threshold, ties, indices, count)
        if count > indices.size:
            return count
    for i in range(whole * LANES, bits.size):
        if np.int32(bits[i] & MAGNITUDE) >= threshold:
            count, ties = _keep(bits, i, threshold, ties, indices, count)
    return count


@njit(nogil=True, cache=True)
def gather(x, indices, values):
    """``values[j] = x[indices[j]]``; returns the bits of the largest magnitude gathered."""
    worst = np.int32(0)
    bits = x.view(np.int32)
    for j in range(indices.size):
        values[j] = x[indices[j]]
        worst = max(worst, np.int32(bits[indices[j]] & MAGNITUDE))
    return worst
