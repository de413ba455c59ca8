"""One bit a value: signs packed into 64-bit words, and unpacked to +-scale.

Bit j of word k is set if value 64 k + j is below zero; zero of either sign counts as plus. In memory the words are
``np.packbits(x < 0, bitorder="little")``, padded with zeros to a multiple of 8 bytes.
"""

import numpy as np
from numba import njit

from hpcopt.kernels import masks

LANES = masks.LANES
NOT_FINITE = np.int32(0x7F800000)


@njit(nogil=True, cache=True)
def pack(x, words):
    """Fill words, uint64, ceil(n / 64), from x, float32, (n,). Returns NOT_FINITE if there is an Inf or NaN, else 0."""
    bits = x.view(np.int32)
    whole = x.size // LANES
    bad = np.uint64(0)
    for k in range(whole):
        masks.prefetch(x, k * LANES + masks.AHEAD)
        words[k] = masks.negative(x, k * LANES)
        bad |= masks.at_least(bits, k * LANES, NOT_FINITE)
    if whole * LANES < x.size:
        tail = np.zeros(LANES, np.float32)
        tail[: x.size - whole * LANES] = x[whole * LANES :]
        words[whole] = masks.negative(tail, 0)
        bad |= masks.at_least(tail.view(np.int32), 0, NOT_FINITE)
    return NOT_FINITE if bad else np.int32(0)


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
def step(words, scale, keep, x):
    """``x <- keep x -+ scale`` for x, float32, (n,), plus where a bit is set: a step of signSGD in one sweep."""
    whole = x.size // LANES
    for k in range(whole):
        masks.keep_and_add_signed(words[k], -scale, keep, x, k * LANES)
    for i in range(whole * LANES, x.size):
        down = words[whole] >> np.uint64(i - whole * LANES) & np.uint64(1)
        kept = np.float32(keep * x[i])
        x[i] = kept + scale if down else kept - scale


@njit(inline="always")
def _mean(sums, values):
    """The mean magnitude of values, given 64 running sums, which are added up by halves: the same order on any
    machine.
    """
    half = LANES // 2
    while half > 0:
        for j in range(half):
            sums[j] += sums[j + half]
        half //= 2
    if np.isfinite(sums[0]):
        return np.float32(np.float64(sums[0]) / values.size)
    total = 0.0  # an Inf or NaN, or huge values whose float32 sums overflow
    for value in values:
        total += np.float64(abs(value))
    return np.float32(total / values.size)


@njit(nogil=True, cache=True)
def encode(x, bucket, scales, words):
    """Fill scales (the mean magnitude of each bucket, float32) and words; bucket is a multiple of 64.

    Returns NOT_FINITE if there is an Inf or NaN, which the scales show, else 0.
    """
    sums = np.empty(LANES, np.float32)
    bad = False
    for b in range(scales.size):
        values = x[b * bucket : (b + 1) * bucket]
        ballot = words[b * bucket // LANES :]
        sums[:] = 0
        whole = values.size // LANES
        for k in range(whole):
            ballot[k] = masks.negative_and_sum(values, k * LANES, sums)
        if whole * LANES < values.size:
            tail = np.zeros(LANES, np.float32)
            tail[: values.size - whole * LANES] = values[whole * LANES :]
            ballot[whole] = masks.negative_and_sum(tail, 0, sums)
        scales[b] = _mean(sums, values)
        bad |= not np.isfinite(scales[b])
    return NOT_FINITE if bad else np.int32(0)


@njit(nogil=True, cache=True)
def encode_feedback(x, residual, bucket, scales, words):
    """As ``encode`` of x + residual, in one sweep of memory; residual keeps what the payload does not carry."""
    sums = np.empty(LANES, np.float32)
    bad = False
    for b in range(scales.size):
        values = x[b * bucket : (b + 1) * bucket]
        owed = residual[b * bucket : (b + 1) * bucket]
        ballot = words[b * bucket // LANES :]
        sums[:] = 0
        whole = values.size // LANES
        for k in range(whole):
            ballot[k] = masks.add_negative_and_sum(values, owed, k * LANES, sums)
        if whole * LANES < values.size:
            tail = np.zeros(LANES, np.float32)
            for i in range(whole * LANES, values.size):
                owed[i] += values[i]
                tail[i - whole * LANES] = owed[i]
            ballot[whole] = masks.negative_and_sum(tail, 0, sums)
        scales[b] = _mean(sums, owed)
        bad |= not np.isfinite(scales[b])
        unpack(ballot, -scales[b], np.bool_(True), owed)
    return NOT_FINITE if bad else np.int32(0)


@njit(nogil=True, cache=True)
def decode(scales, words, bucket, weight, add, out):
    """Write (or add) weight times the decoded values to out."""
    for b in range(scales.size):
        unpack(words[b * bucket // LANES :], np.float32(scales[b] * weight), add, out[b * bucket : (b + 1) * bucket])
