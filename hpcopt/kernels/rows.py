"""Uniform stochastic quantisation with a centre and a step for each row of a matrix: PSQ (arXiv:2010.14298).

With c the middle of a row's range and B = 2^bits - 1, a value x becomes the code ``floor((x - c) / step + B / 2 + u)``,
u uniform in [0, 1), from 0 to B. That is computed in fixed point, with 32 - bits fractional bits, so that rounding up
is a carry. Rows lie one after the other, the last may be short; codes are packed in blocks whatever the rows.
"""

import numpy as np
from numba import njit

from hpcopt.kernels import packing, rng
from hpcopt.kernels.levels import LIFT, MAGNITUDE, TINY, per_scale
from hpcopt.kernels.rng import BLOCK, RAMP

NOT_FINITE = np.int32(0x7F800000)
HUGE = np.float32(2.0**127)  # above half of it, a step is shortened, so that no sum leaves float32
SHORTER = np.float32(1 - 2.0**-22)


NO_ENDS = np.uint32(0xFFFFFFFF), np.uint32(0), ~MAGNITUDE


@njit(inline="always")
def further(value, least, most, most_signed):
    """The smallest and largest bits of float32 values, as uint32, and the largest as int32, with one value more."""
    bits = np.float32(value).view(np.uint32)
    return min(least, bits), max(most, bits), max(most_signed, np.float32(value).view(np.int32))


@njit(inline="always")
def ordered(least, most, most_signed):
    """The bits of the smallest and the largest value, and of the largest magnitude, of those that ``further`` saw."""
    low = most if most > np.uint32(MAGNITUDE) else least  # below zero, a larger magnitude has larger bits
    high = np.uint32(most_signed) if most_signed >= 0 else least
    sizes = np.uint32(low & np.uint32(MAGNITUDE)), np.uint32(high & np.uint32(MAGNITUDE))
    return low, high, np.int32(max(sizes[0], sizes[1]))


@njit(nogil=True, cache=True)
def ends(row):
    """The bits, uint32, of the smallest and the largest of float32 values, and of the largest magnitude; Inf and NaN
    have magnitudes at NOT_FINITE and above.
    """
    least, most, most_signed = NO_ENDS
    for j in range(row.size):
        least, most, most_signed = further(row[j], least, most, most_signed)
    return ordered(least, most, most_signed)


@njit(inline="always")
def grid(low, high, bits):
    """A row's centre and step, and what ``put`` needs, from the bits of its ends."""
    low, high = np.uint32(low).view(np.float32), np.uint32(high).view(np.float32)
    centre = np.float32(0.5 * np.float64(low) + 0.5 * np.float64(high))
    reach = max(np.float32(high - centre), np.float32(centre - low))
    if reach == 0:
        return centre, np.float32(0), np.float32(1), np.float32(0)
    lift = LIFT if reach < TINY else np.float32(1)
    units = np.float32(np.float64((1 << bits) - 1) * 2.0 ** (31 - bits))
    factor = per_scale(np.float32(reach * lift), units)
    step = np.float32(2.0 ** (32 - bits) / (np.float64(factor) * np.float64(lift)))
    if 2 * np.float64(max(abs(low), abs(high))) > HUGE:
        step = np.float32(step * SHORTER)
    return centre, step, lift, factor


@njit(inline="always")
def _code(value, centre, factor, half, counter, high, bits):
    fixed = np.uint32(np.int32(np.float32(value - centre) * factor))
    dice = np.uint32(rng.shift_right(rng.mix(counter, high), np.uint32(bits)))
    return rng.shift_right(np.uint32(np.uint32(fixed + half) + dice), np.uint32(32 - bits))


@njit(nogil=True, cache=True)
def _codes(row, centre, factor, bits, counter, high, codes):
    half = np.uint32(((1 << bits) - 1) << (31 - bits))
    for j in range(row.size):
        codes[j] = np.uint8(_code(row[j], centre, factor, half, np.uint32(counter + RAMP[j]), high, bits))


@njit(inline="always")
def _packed_rows(row, centre, factor, bits, counter, high, packed):
    half = np.uint32(((1 << bits) - 1) << (31 - bits))
    lanes = BLOCK * bits // 8
    for j in range(lanes):
        byte = np.uint32(0)
        for part in range(8 // bits):
            k = part * lanes + j
            code = _code(row[k], centre, factor, half, np.uint32(counter + RAMP[k]), high, bits)
            byte |= np.uint32(code << np.uint32(bits * part))
        packed[j] = np.uint8(byte)


@njit(nogil=True, cache=True)
def _packed(row, centre, factor, bits, counter, high, packed):
    """The codes of a whole block as ``packing.pack`` lays them out, for 2, 4 or 8 bits."""
    if bits == 4:  # a loop for each width, so that it is a constant
        _packed_rows(row, centre, factor, 4, counter, high, packed)
    elif bits == 2:
        _packed_rows(row, centre, factor, 2, counter, high, packed)
    else:
        _packed_rows(row, centre, factor, 8, counter, high, packed)


@njit(nogil=True, cache=True)
def put(row, line, bits, place, seed, first, codes, packed, done):
    """Append a row's codes to the packed ones; give the bytes that are done.

    line: centre, lift and factor of the row, as ``grid`` gives them. place: of its first value, from the first one
    that was put; first: the index of that in the whole tensor. codes: uint8, PADDED long, holds what is not yet a whole
    block.
    """
    centre, lift, factor = line
    if lift > 1:
        row, centre = (row - centre) * lift, np.float32(0)
    low, high = rng.words(seed)
    i = 0
    while i < row.size:
        filled = (place + i) % BLOCK
        count = min(BLOCK - filled, row.size - i)
        counter = rng.start(first + place + i, low)
        values = row[i : i + count]
        if count == BLOCK and 8 % bits == 0:
            end = done + BLOCK * bits // 8
            _packed(values, centre, factor, bits, counter, high, packed[done:end])
            done = end
        else:
            _codes(values, centre, factor, bits, counter, high, codes[filled : filled + count])
            if filled + count == BLOCK:
                done += packing.pack(codes, filled + count, bits, packed[done:])
        i += count
    return done


@njit(nogil=True, cache=True)
def end(n, bits, codes, packed, done):
    """Pack what is left after n values."""
    if n % BLOCK:
        packing.pack(codes, n % BLOCK, bits, packed[done:])


@njit(nogil=True, cache=True)
def _values(codes, centre, step, middle, add, out):
    if add:
        for j in range(codes.size):
            out[j] += centre + step * (np.float32(codes[j]) - middle)
    else:
        for j in range(codes.size):
            out[j] = centre + step * (np.float32(codes[j]) - middle)


@njit(nogil=True, cache=True)
def take(packed, done, place, n, bits, centre, step, codes, add, out):
    """Write (or add, if ``add``) a row's values to out; give the bytes that are read. As ``put``, of n values."""
    middle = np.float32(((1 << bits) - 1) / 2)
    i = 0
    while i < out.size:
        used = (place + i) % BLOCK
        if used == 0:
            done += packing.unpack(packed[done:], min(BLOCK, n - place - i), bits, codes)
        count = min(BLOCK - used, out.size - i)
        _values(codes[used : used + count], centre, step, middle, add, out[i : i + count])
        i += count
    return done


@njit(nogil=True, cache=True, error_model="numpy")
def encode(x, columns, bits, seed, first, centres, steps, packed):
    """Fill centres and steps, float32, one a row of ``columns`` values, and the packed codes of x, float32, (n,).

    first: the index of x[0] in the whole tensor. Returns the bits of the largest magnitude, before anything else if
    there is an Inf or NaN.
    """
    codes = np.empty(packing.PADDED, np.uint8)
    top, done = np.int32(0), np.int64(0)
    for r in range(centres.size):
        row = x[r * columns : (r + 1) * columns]
        low, high, largest = ends(row)
        top = max(top, largest)
        if top >= NOT_FINITE:
            return top
        centres[r], steps[r], lift, factor = grid(low, high, bits)
        done = put(row, (centres[r], lift, factor), bits, r * columns, seed, first, codes, packed, done)
    end(x.size, bits, codes, packed, done)
    return top


@njit(nogil=True, cache=True)
def decode(centres, steps, packed, columns, bits, weight, add, out):
    """Write (or add, if ``add``) weight times the decoded values to out, float32, (n,)."""
    codes = np.empty(packing.PADDED, np.uint8)
    done = np.int64(0)
    for r in range(centres.size):
        row = out[r * columns : (r + 1) * columns]
        centre, step = np.float32(centres[r] * weight), np.float32(steps[r] * weight)
        done = take(packed, done, r * columns, out.size, bits, centre, step, codes, add, row)


@njit(nogil=True, cache=True, error_model="numpy")
def nearest(x, columns, bits, out):
    """Fill out, float32, (n,), with x on the grid of each row: 2^bits values from its smallest to its largest."""
    top = np.float32((1 << bits) - 1)
    for start in range(0, x.size, columns):
        row, to = x[start : start + columns], out[start : start + columns]
        low, high, largest = ends(row)
        if largest >= NOT_FINITE:
            to[:] = np.nan
            continue
        low, high = np.uint32(low).view(np.float32), np.uint32(high).view(np.float32)
        step = np.float32(np.float32(high - low) / top)
        steps = step if step > 0 else np.float32(1)
        for j in range(row.size):
            to[j] = np.float32(np.rint(np.float32(np.float32(row[j] - low) / steps))) * step + low
