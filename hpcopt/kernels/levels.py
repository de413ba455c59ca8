"""Uniform stochastic quantisation: QSGD and, with one level, TernGrad.

A value x of a bucket with scale N becomes the signed level ``floor(x s / N + u)``, u uniform in [0, 1), computed in
fixed point: ``x s / N`` as an int32 with 32 - bits fractional bits, so that rounding up is a carry. The code on the
wire is level + s.
"""

import numpy as np
from numba import njit

from hpcopt.kernels import packing, rng
from hpcopt.kernels.rng import BLOCK, RAMP

MAGNITUDE = np.int32(0x7FFFFFFF)
TINY = np.float32(2.0**-80)  # below it a bucket is lifted by LIFT first, so that 1 / scale is finite
LIFT = np.float32(2.0**64)


@njit(inline="always")
def largest(bits):
    """The largest magnitude of float32 values given as int32 bits, as bits: Inf and NaN come out at 0x7F800000 and
    above.
    """
    top = np.int32(0)
    for j in range(bits.size):
        top = max(top, np.int32(bits[j] & MAGNITUDE))
    return top


@njit(nogil=True, cache=True)
def sum_of_squares(x):
    """Sum of x^2 in float64: 64 running sums, then these by halves. One order, for vectors of any width and GPUs."""
    sums = np.zeros(64)
    whole = x.size - x.size % 64
    for i in range(0, whole, 64):
        row = x[i : i + 64]
        for j in range(64):
            sums[j] += np.float64(row[j]) * np.float64(row[j])
    for j in range(x.size - whole):
        sums[j] += np.float64(x[whole + j]) * np.float64(x[whole + j])
    half = 32
    while half > 0:
        for j in range(half):
            sums[j] += sums[j + half]
        half //= 2
    return sums[0]


@njit(inline="always")
def per_scale(scale, units):
    """``units / scale``, rounded so that in float32 ``scale * f <= units``: no magnitude up to scale may pass the last
    level. The quotient is rounded to the nearest, so the value below it is small enough; a choice and no branch, since
    which of the two it is cannot be guessed.
    """
    factor = np.float32(units / scale)
    below = np.int32(np.float32(factor).view(np.int32) - np.int32(1)).view(np.float32)
    return below if np.float32(scale * factor) > units else factor


@njit(inline="always")
def code(value, factor, counter, high, bits):
    """The code of one value, |value * factor| being at most the last level in fixed point."""
    fraction_bits = np.uint32(32 - bits)
    levels = np.int32((1 << (bits - 1)) - 1)
    fixed = np.int32(value * factor)
    dice = np.int32(rng.shift_right(rng.mix(counter, high), np.uint32(bits)))
    level = rng.shift_right(np.int32(fixed + dice), fraction_bits)
    return np.uint32(np.int32(level + levels))


@njit(nogil=True, cache=True, error_model="numpy")
def quantise(x, factor, bits, counter, high, codes):
    """Fill the codes of one block."""
    for j in range(x.size):
        codes[j] = np.uint8(code(x[j], factor, np.uint32(counter + RAMP[j]), high, bits))


@njit(inline="always")
def _quantise_rows(x, factor, bits, counter, high, packed):
    lanes = BLOCK * bits // 8
    for j in range(lanes):
        byte = np.uint32(0)
        for row in range(8 // bits):
            k = row * lanes + j
            byte |= np.uint32(code(x[k], factor, np.uint32(counter + RAMP[k]), high, bits) << np.uint32(bits * row))
        packed[j] = np.uint8(byte)


@njit(inline="always")
def quantise_packed(x, factor, bits, counter, high, packed):
    """The codes of a whole block as ``packing.pack`` lays them out, for 2, 4 or 8 bits: put together in registers."""
    if bits == 4:  # a loop for each width, so that it is a constant, which makes the loop vectors throughout
        _quantise_rows(x, factor, 4, counter, high, packed)
    elif bits == 2:
        _quantise_rows(x, factor, 2, counter, high, packed)
    else:
        _quantise_rows(x, factor, 8, counter, high, packed)


@njit(nogil=True, cache=True)
def clipped(x, limit, lift, out):
    """Fill out with the values cut to +-limit, times lift, and return the part filled."""
    for j in range(x.size):
        out[j] = min(max(x[j], -limit), limit) * lift
    return out[: x.size]


@njit(nogil=True, cache=True, error_model="numpy")
def encode(x, bucket, bits, l2, clip, seed, first, scales, packed):
    """Fill scales, float32, one a bucket, and the packed codes.

    x: float32, (n,). bucket: a multiple of 512. bits: 2 to 8. l2: scale by the bucket's 2-norm, not by its largest
    magnitude. clip: magnitudes above clip times the bucket's root mean square are cut to it; 0 for no clipping.
    first: the index of x[0] in the whole tensor. Returns the bits of the largest magnitude.
    """
    low, high = rng.words(seed)
    codes = np.empty(packing.PADDED, np.uint8)
    lifted = np.empty(BLOCK, np.float32)
    units = np.float32(np.float64((1 << (bits - 1)) - 1) * 2.0 ** (32 - bits))
    peak = np.int32(0)
    done = 0
    for b in range(scales.size):
        values = x[b * bucket : (b + 1) * bucket]
        top = largest(values.view(np.int32))
        peak = max(peak, top)
        largest_value = np.int32(top).view(np.float32)
        scale = largest_value
        if l2:
            scale = np.float32(np.sqrt(sum_of_squares(values)))
            scale = max(scale, largest_value)
            peak = max(peak, np.float32(scale).view(np.int32))  # the norm may overflow
        if clip > 0:
            scale = min(scale, np.float32(clip * np.sqrt(sum_of_squares(values) / values.size)))
        scales[b] = scale
        lift = LIFT if scale < TINY else np.float32(1)
        factor = per_scale(np.float32(scale * lift), units) if scale > 0 else np.float32(0)
        for i in range(0, values.size, BLOCK):
            block = values[i : i + BLOCK]
            if clip > 0 or lift > 1:
                block = clipped(block, scale, lift, lifted)
            counter = rng.start(first + b * bucket + i, low)
            if block.size == BLOCK and 8 % bits == 0:
                end = done + BLOCK * bits // 8
                quantise_packed(block, factor, bits, counter, high, packed[done:end])
                done = end
            else:
                quantise(block, factor, bits, counter, high, codes)
                done += packing.pack(codes, block.size, bits, packed[done:])
    return peak


@njit(inline="always")
def within(step, levels):
    """The step between levels, so that in float32 ``step * levels`` is finite if the step is."""
    below = np.int32(np.float32(step).view(np.int32) - np.int32(1)).view(np.float32)
    return below if np.isinf(np.float32(step * np.float32(levels))) and np.isfinite(step) else step


@njit(nogil=True, cache=True)
def decode(scales, packed, bucket, bits, weight, add, out):
    """Write (or add, if ``add``) weight times the decoded values to out, float32, (n,)."""
    codes = np.empty(packing.PADDED, np.uint8)
    levels = np.int32((1 << (bits - 1)) - 1)
    done = 0
    for b in range(scales.size):
        step = within(np.float32(np.float64(scales[b]) * weight / levels), levels)
        values = out[b * bucket : (b + 1) * bucket]
        for i in range(0, values.size, BLOCK):
            block = values[i : i + BLOCK]
            done += packing.unpack(packed[done:], block.size, bits, codes)
            if add:
                for j in range(block.size):
                    block[j] += step * np.float32(np.int32(np.int32(codes[j]) - levels))
            else:
                for j in range(block.size):
                    block[j] = step * np.float32(np.int32(np.int32(codes[j]) - levels))


@njit(nogil=True, cache=True)
def worst(x):
    """The bits of the largest magnitude of x."""
    return largest(x.view(np.int32))


@njit(nogil=True, cache=True)
def magnitudes(x):
    """The largest magnitude of x and its sum of squares."""
    return np.float64(np.int32(largest(x.view(np.int32))).view(np.float32)), sum_of_squares(x)


@njit(nogil=True, cache=True)
def ternary(x, scale, seed, first, signs):
    """Fill signs, int8, with sign(x_i) b_i, b_i being 1 with probability |x_i| / scale (at most 1)."""
    low, high = rng.words(seed)
    for i in range(x.size):
        dice = np.float64(rng.mix(rng.start(first + i, low), high)) * 2.0**-32
        hit = dice * scale < abs(x[i])
        signs[i] = np.int8(0 if not hit else (-1 if x[i] < 0 else 1))
