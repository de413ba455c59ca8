"""One bit a value: signs packed into 64-bit words, and unpacked to +-scale.

Bit j of word k is set if value 64 k + j is below zero; zero of either sign counts as plus. In memory the words are
``np.packbits(x < 0, bitorder="little")``, padded with zeros to a multiple of 8 bytes.
"""

import numpy as np
from numba import njit

from hpcopt.kernels import masks
from hpcopt.kernels.qsgd import largest
from hpcopt.kernels.rng import BLOCK

LANES = masks.LANES


@njit(inline="always")
def _pack_block(x, words):
    """Pack up to 512 values into the head of words."""
    whole = x.size // LANES
    for k in range(whole):
        words[k] = masks.negative(x, k * LANES)
    if whole * LANES < x.size:
        tail = np.zeros(LANES, np.float32)
        for j in range(x.size - whole * LANES):
            tail[j] = x[whole * LANES + j]
        words[whole] = masks.negative(tail, 0)


@njit(nogil=True, cache=True)
def pack(x, words):
    """Fill words, uint64, ceil(n / 64), from x, float32, (n,). Returns the bits of the largest magnitude."""
    worst = np.int32(0)
    for i in range(0, x.size, BLOCK):
        block = x[i : i + BLOCK]
        worst = max(worst, largest(block.view(np.int32)))
        _pack_block(block, words[i // LANES :])
    return worst


@njit(nogil=True, cache=True)
def unpack(words, scale, add, out):
    """Write (or add, if ``add``) +-scale to out, float32, (n,). With ``add`` and scale = -lr it is the step of
    signSGD.
    """
    whole = out.size // LANES
    for k in range(whole):
        if add:
            masks.add_signed(words[k], scale, out, k * LANES)
        else:
            masks.signed(words[k], scale, out, k * LANES)
    for i in range(whole * LANES, out.size):
        value = -scale if words[whole] >> np.uint64(i - whole * LANES) & np.uint64(1) else scale
        out[i] = out[i] + value if add else value


@njit(nogil=True, cache=True)
def _sum_magnitudes(x, sums):
    """The sum of |x| of up to 512 values: 64 running sums, then by halves, in the same order whatever the machine's
    vectors.
    """
    whole = x.size - x.size % LANES
    for j in range(LANES):
        sums[j] = abs(x[j]) if whole > 0 else np.float32(0)
    for i in range(LANES, whole, LANES):
        row = x[i : i + LANES]
        for j in range(LANES):
            sums[j] += abs(row[j])
    for i in range(whole, x.size):
        sums[i - whole] += abs(x[i])
    half = LANES // 2
    while half > 0:
        for j in range(half):
            sums[j] += sums[j + half]
        half //= 2
    if np.isfinite(sums[0]):
        return np.float64(sums[0])
    total = 0.0  # float32 sums of huge values overflow
    for value in x:
        total += np.float64(abs(value))
    return total


@njit(nogil=True, cache=True)
def encode(x, bucket, scales, words):
    """Fill scales (the mean magnitude of each bucket, float32) and words; bucket is a multiple of 512."""
    worst = np.int32(0)
    sums = np.zeros(LANES, np.float32)
    for b in range(scales.size):
        values = x[b * bucket : (b + 1) * bucket]
        total = 0.0
        for i in range(0, values.size, BLOCK):
            block = values[i : i + BLOCK]
            worst = max(worst, largest(block.view(np.int32)))
            total += _sum_magnitudes(block, sums)
            _pack_block(block, words[(b * bucket + i) // LANES :])
        scales[b] = np.float32(total / values.size)
    return worst


@njit(nogil=True, cache=True)
def encode_feedback(x, residual, bucket, scales, words):
    """As ``encode`` of x + residual, in one sweep of memory; residual keeps what the payload does not carry."""
    worst = np.int32(0)
    sums = np.zeros(LANES, np.float32)
    for b in range(scales.size):
        values = x[b * bucket : (b + 1) * bucket]
        owed = residual[b * bucket : (b + 1) * bucket]
        total = 0.0
        for i in range(0, values.size, BLOCK):
            fresh, block = values[i : i + BLOCK], owed[i : i + BLOCK]
            for j in range(block.size):
                block[j] += fresh[j]
            worst = max(worst, largest(block.view(np.int32)))
            total += _sum_magnitudes(block, sums)
            _pack_block(block, words[(b * bucket + i) // LANES :])
        scales[b] = np.float32(total / values.size)
        unpack(words[b * bucket // LANES :], -scales[b], True, owed)
    return worst


@njit(nogil=True, cache=True)
def decode(scales, words, bucket, weight, add, out):
    """Write (or add) weight times the decoded values to out."""
    for b in range(scales.size):
        unpack(words[b * bucket // LANES :], np.float32(scales[b] * weight), add, out[b * bucket : (b + 1) * bucket])
