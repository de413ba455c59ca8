"""Rounding to powers of two, which is arithmetic on the bits of a float32.

Adding d to the bits of |x| and dropping the 23 mantissa bits rounds up if the mantissa m reaches 2^23 - d. With d
uniform in [0, 2^23) that happens with probability m / 2^23: natural compression, exactly unbiased (also for
denormals, where the carry leads from 0 to 2^-126). With d = 2^22 it is rounding to the nearest power.
"""

import numpy as np
from numba import njit

from hpcopt.kernels import masks, packing, rng
from hpcopt.kernels.levels import LIFT, MAGNITUDE, TINY, clipped, largest, per_scale
from hpcopt.kernels.rng import BLOCK, RAMP

HALF = np.int32(1 << 22)
ONE = np.int32(127)  # the exponent field of 1.0


@njit(inline="always")
def _round(bits, nearest, counter, high, exponents):
    """Fill the exponent bytes of one block and return the bits of its largest magnitude."""
    top = np.int32(0)
    if nearest:
        for j in range(bits.size):
            magnitude = np.int32(bits[j] & MAGNITUDE)
            top = max(top, magnitude)
            exponents[j] = np.uint8(rng.shift_right(np.int32(magnitude + HALF), np.uint32(23)))
    else:
        for j in range(bits.size):
            magnitude = np.int32(bits[j] & MAGNITUDE)
            top = max(top, magnitude)
            dice = np.int32(rng.shift_right(rng.mix(np.uint32(counter + RAMP[j]), high), np.uint32(9)))
            exponents[j] = np.uint8(rng.shift_right(np.int32(magnitude + dice), np.uint32(23)))
    return top


@njit(inline="always")
def _signs(bits, packed):
    """The sign bits of a whole block as ``packing.pack`` lays them out."""
    lanes = BLOCK // 8
    for j in range(lanes):
        byte = np.uint32(0)
        for row in range(8):
            sign = rng.shift_right(np.uint32(bits[row * lanes + j]), np.uint32(31))
            byte |= np.uint32(sign << np.uint32(row))
        packed[j] = np.uint8(byte)


@njit(nogil=True, cache=True)
def encode(x, nearest, seed, first, packed):
    """Fill packed: for each block of 512 its exponent bytes, then its packed sign bits. Returns the bits of the
    largest magnitude.
    """
    low, high = rng.words(seed)
    signs = np.empty(packing.PADDED, np.uint8)
    worst = np.int32(0)
    done = 0
    for i in range(0, x.size, BLOCK):
        bits = x[i : i + BLOCK].view(np.int32)
        for ahead in range(i + masks.AHEAD, i + masks.AHEAD + BLOCK, masks.LANES):
            masks.prefetch(x, ahead)
        exponents = packed[done : done + bits.size]
        worst = max(worst, _round(bits, nearest, rng.start(first + i, low), high, exponents))
        done += bits.size
        if bits.size == BLOCK:
            _signs(bits, packed[done : done + BLOCK // 8])
            done += BLOCK // 8
        else:
            for j in range(bits.size):
                signs[j] = np.uint8(rng.shift_right(np.uint32(bits[j]), np.uint32(31)))
            done += packing.pack(signs, bits.size, np.int64(1), packed[done:])
    return worst


@njit(nogil=True, cache=True)
def decode(packed, weight, add, out):
    """Write (or add) weight times the decoded values to out."""
    signs = np.empty(packing.PADDED, np.uint8)
    bits = np.empty(BLOCK, np.int32)
    done = 0
    for i in range(0, out.size, BLOCK):
        block = out[i : i + BLOCK]
        exponents = packed[done : done + block.size]
        done += block.size
        done += packing.unpack(packed[done:], block.size, np.int64(1), signs)
        for j in range(block.size):
            bits[j] = np.int32(np.int32(signs[j]) << np.int32(31)) | np.int32(np.int32(exponents[j]) << np.int32(23))
        values = bits.view(np.float32)
        if add:
            for j in range(block.size):
                block[j] += weight * values[j]
        else:
            for j in range(block.size):
                block[j] = weight * values[j]


@njit(nogil=True, cache=True)
def _dither_block(x, factor, top, counter, high, sign_bit, codes):
    """Codes of one block: 0, or 1 + the exponent of |x| factor after stochastic rounding, at most ``top``; and the
    sign bit.
    """
    for j in range(x.size):
        dice = np.int32(rng.shift_right(rng.mix(np.uint32(counter + RAMP[j]), high), np.uint32(9)))
        value = np.float32(abs(x[j]) * factor)
        bits = np.int32(np.float32(value).view(np.int32))
        power = np.int32(rng.shift_right(np.int32(bits + dice), np.uint32(23)) - np.int32(ONE - 1))
        small = np.int32(1) if np.float32(dice) < value * np.float32(2.0**23) else np.int32(0)
        level = small if value < np.float32(1) else min(power, top)
        codes[j] = np.uint8(level) | (sign_bit if x[j] < 0 else np.uint8(0))


@njit(nogil=True, cache=True, error_model="numpy")
def dither(x, bucket, bits, seed, first, scales, packed):
    """Exponential dithering: fill scales (the largest magnitude of each bucket) and packed codes of ``bits`` bits.

    The levels of a bucket with scale N are 0 and N 2^(k - s), k = 1 .. s, with s = 2^(bits - 1) - 1. Returns the bits
    of the largest magnitude.
    """
    low, high = rng.words(seed)
    codes = np.empty(packing.PADDED, np.uint8)
    lifted = np.empty(BLOCK, np.float32)
    top = np.int32((1 << (bits - 1)) - 1)
    units = np.float32(2.0 ** (top - 1))
    sign_bit = np.uint8(1 << (bits - 1))
    worst = np.int32(0)
    done = 0
    for b in range(scales.size):
        values = x[b * bucket : (b + 1) * bucket]
        peak = largest(values.view(np.int32))
        worst = max(worst, peak)
        scale = np.int32(peak).view(np.float32)
        scales[b] = scale
        lift = LIFT if scale < TINY else np.float32(1)
        factor = per_scale(np.float32(scale * lift), units) if scale > 0 else np.float32(0)
        for i in range(0, values.size, BLOCK):
            block = values[i : i + BLOCK]
            if lift > 1:
                block = clipped(block, scale, lift, lifted)
            _dither_block(block, factor, top, rng.start(first + b * bucket + i, low), high, sign_bit, codes)
            done += packing.pack(codes, block.size, bits, packed[done:])
    return worst


@njit(nogil=True, cache=True)
def undither(scales, packed, bucket, bits, weight, add, out):
    """Write (or add) weight times the decoded values of ``dither`` to out."""
    codes = np.empty(packing.PADDED, np.uint8)
    top = (1 << (bits - 1)) - 1
    table = np.zeros(1 << bits, np.float32)
    for level in range(1, top + 1):
        table[level] = 2.0 ** (level - top)
        table[level + top + 1] = -table[level]
    done = 0
    for b in range(scales.size):
        scale = np.float32(scales[b] * weight)
        values = out[b * bucket : (b + 1) * bucket]
        for i in range(0, values.size, BLOCK):
            block = values[i : i + BLOCK]
            done += packing.unpack(packed[done:], block.size, bits, codes)
            for j in range(block.size):
                value = scale * table[codes[j]]
                block[j] = block[j] + value if add else value
