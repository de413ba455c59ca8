"""The largest k of every so many values, as signs and one of two magnitudes, with their places.

A stretch of ``chunk`` values sends k of them; the last one, of c values, ``ceil(k c / chunk)``. Its bytes hold, from
the low bits up: a code of two bits for each value in the order of the places (1: minus, 2: the larger magnitude); the
low ``l = floor(log2(c / k))`` bits of every place; and, by Elias and Fano, a set bit number ``(place >> l) + i`` for
the i-th of them. That is ``2 + log2(c / k)`` bits a place or less, whatever the places are.
"""

import numpy as np
from numba import njit

from hpcopt.kernels import select
from hpcopt.kernels.levels import largest


@njit(inline="always")
def sent_of(count, chunk, k):
    """How many of a stretch's values are sent."""
    return (count * k + chunk - 1) // chunk


@njit(inline="always")
def low_bits(count, k):
    """Low bits of a place that are written as they are."""
    bits = 0
    while k << (bits + 1) <= count:
        bits += 1
    return bits


@njit(nogil=True, cache=True)
def stretch_bytes(count, chunk, k):
    """Bytes of a stretch of ``count`` values, without its two magnitudes."""
    sent = sent_of(count, chunk, k)
    low = low_bits(count, sent)
    return ((3 + low) * sent + ((count - 1) >> low) + 7) // 8


@njit(inline="always")
def _put(value, width, at, packed):
    for b in range(width):
        if (value >> b) & 1:
            packed[(at + b) >> 3] = np.uint8(packed[(at + b) >> 3] | np.uint8(1 << ((at + b) & 7)))


@njit(inline="always")
def _get(packed, width, at):
    value = 0
    for b in range(width):
        value |= ((packed[(at + b) >> 3] >> ((at + b) & 7)) & 1) << b
    return value


@njit(nogil=True, cache=True)
def _split(magnitudes):
    """The least of those that belong to the upper of two groups: the cut with the smallest squared distance to the
    groups' means.
    """
    ordered = np.sort(magnitudes)
    total = ordered.sum()
    best, cut, below = total * total / ordered.size, 0, 0.0
    for j in range(1, ordered.size):
        below += ordered[j - 1]
        explained = below * below / j + (total - below) * (total - below) / (ordered.size - j)
        if explained > best:
            best, cut = explained, j
    return ordered[cut]


@njit(nogil=True, cache=True)
def _levels(magnitudes, least, levels):
    """Fill levels with the means of the magnitudes below ``least`` and of the others."""
    below, above, count = 0.0, 0.0, 0
    for magnitude in magnitudes:
        if magnitude < least:
            below += magnitude
            count += 1
        else:
            above += magnitude
    levels[0] = np.float32(below / count) if count else np.float32(0)
    levels[1] = np.float32(above / (magnitudes.size - count))


@njit(nogil=True, cache=True)
def encode(x, chunk, k, levels, packed):
    """Fill levels, float32, two a stretch, and the packed codes and places. Returns the bits of the largest magnitude
    of x, before anything else if they are those of Inf or NaN.
    """
    bits = x.view(np.int32)
    worst = largest(bits)
    if worst >= select.NOT_FINITE:
        return worst
    packed[:] = 0
    start = 0
    for s in range(levels.size // 2):
        count = min(chunk, x.size - s * chunk)
        sent = sent_of(count, chunk, k)
        values = bits[s * chunk : s * chunk + count]
        places = np.empty(sent, np.uint32)
        threshold, above = select.kth_largest(values, sent)
        select.compact(values, threshold, sent - above, places)
        magnitudes = np.empty(sent, np.float64)
        for i in range(sent):
            magnitudes[i] = abs(np.float64(x[s * chunk + np.int64(places[i])]))
        least = _split(magnitudes)
        _levels(magnitudes, least, levels[2 * s : 2 * s + 2])
        low = low_bits(count, sent)
        for i in range(sent):
            place = np.int64(places[i])
            code = (1 if values[place] < 0 else 0) | (2 if magnitudes[i] >= least else 0)
            _put(code, 2, 8 * start + 2 * i, packed)
            _put(place, low, 8 * start + 2 * sent + low * i, packed)
            _put(1, 1, 8 * start + (2 + low) * sent + (place >> low) + i, packed)
        start += stretch_bytes(count, chunk, k)
    return worst


@njit(nogil=True, cache=True)
def decode(levels, packed, chunk, k, weight, out):
    """Add weight times the values to out, float32, (n,); False (with out in part changed) if the places are none."""
    start = 0
    for s in range(levels.size // 2):
        count = min(chunk, out.size - s * chunk)
        sent = sent_of(count, chunk, k)
        low = low_bits(count, sent)
        upper = 8 * start + (2 + low) * sent
        i = 0
        for bit in range(sent + ((count - 1) >> low)):
            if not _get(packed, 1, upper + bit):
                continue
            if i == sent:
                return False
            place = ((bit - i) << low) | _get(packed, low, 8 * start + 2 * sent + low * i)
            if place >= count:
                return False
            code = _get(packed, 2, 8 * start + 2 * i)
            value = np.float32(weight * levels[2 * s + (code >> 1)])
            out[s * chunk + place] += -value if code & 1 else value
            i += 1
        if i < sent:
            return False
        start += stretch_bytes(count, chunk, k)
    return True
