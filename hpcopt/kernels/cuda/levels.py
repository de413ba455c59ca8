"""Uniform stochastic quantisation, as ``hpcopt.kernels.levels``: a program a bucket to encode, a block to decode."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hpcopt.kernels.cuda import packing, rng, sums
from hpcopt.kernels.cuda.launch import launch, worst_of

MAGNITUDE = tl.constexpr(0x7FFFFFFF)
NOT_FINITE = tl.constexpr(0x7F800000)
BLOCK = packing.BLOCK
TINY = tl.constexpr(2.0**-80)
LIFT = tl.constexpr(2.0**64)


@triton.jit
def largest(x, count, BUCKET: tl.constexpr):
    """The bits of the largest magnitude of the ``count`` values at x, int32."""
    lane = tl.arange(0, BLOCK)
    top = tl.zeros((), tl.int32)
    for i in range(0, BUCKET, BLOCK):
        value = tl.load(x + i + lane, mask=i + lane < count, other=0.0)
        top = tl.maximum(top, tl.max(value.to(tl.int32, bitcast=True) & MAGNITUDE, 0))
    return top


@triton.jit
def per_scale(scale, UNITS: tl.constexpr):
    """UNITS / scale, rounded so that in float32 ``scale * f <= UNITS``; 0 for a scale of 0."""
    factor = tl.div_rn(tl.full((), UNITS, tl.float32), scale)
    below = (factor.to(tl.int32, bitcast=True) - 1).to(tl.float32, bitcast=True)
    factor = tl.where(scale * factor > UNITS, below, factor)
    return tl.where(scale > 0, factor, 0.0)


@triton.jit
def note_worst(worst, top):
    """Keep the largest magnitude that is not finite, for the host."""
    tl.atomic_max(worst, top, mask=top >= NOT_FINITE)


@triton.jit
def _codes(k, inside, x, limit, lift, factor, start, high, first, BITS: tl.constexpr, CLIP: tl.constexpr):
    value = tl.load(x + k, mask=inside, other=0.0)
    if CLIP > 0:
        value = tl.minimum(tl.maximum(value, -limit), limit)
    fixed = (value * lift * factor).to(tl.int32)
    dice = (rng.draw(start, high, first + k) >> BITS).to(tl.int32)
    return ((fixed + dice) >> (32 - BITS)) + ((1 << (BITS - 1)) - 1)


@triton.jit(do_not_specialize=["start", "high"])
def _encode(
    x,
    scales,
    packed,
    worst,
    n,
    start,
    high,
    BUCKET: tl.constexpr,
    BITS: tl.constexpr,
    UNITS: tl.constexpr,
    L2: tl.constexpr,
    CLIP: tl.constexpr,
):
    bucket = tl.program_id(0).to(tl.int64)
    first = bucket * BUCKET
    count = tl.minimum(n - first, BUCKET).to(tl.int32)
    x += first
    top = largest(x, count, BUCKET)
    scale = top.to(tl.float32, bitcast=True)
    if L2:
        scale = tl.maximum(tl.sqrt(sums.sum_of_squares(x, count, BUCKET)).to(tl.float32), scale)
        top = tl.maximum(top, scale.to(tl.int32, bitcast=True))  # the norm may overflow
    if CLIP > 0:
        mean = sums.sum_of_squares(x, count, BUCKET) / count.to(tl.float64)
        scale = tl.minimum(scale, (tl.sqrt(mean) * CLIP).to(tl.float32))
    note_worst(worst, top)
    tl.store(scales + bucket, scale)
    lift = tl.where(scale < TINY, LIFT, 1.0)
    factor = per_scale(scale * lift, UNITS)
    packing.put_all(_codes, (x, scale, lift, factor, start, high, first, BITS, CLIP), first, count, BITS, packed)


@triton.jit
def _decode(steps, packed, out, n, BUCKET: tl.constexpr, BITS: tl.constexpr, ADD: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * BLOCK
    count = tl.minimum(n - first, BLOCK).to(tl.int32)
    k = tl.arange(0, BLOCK)
    inside = k < count
    codes = packing.get(packed + first // 8 * BITS, k, inside, count, BITS)
    value = tl.load(steps + first // BUCKET) * (codes - ((1 << (BITS - 1)) - 1)).to(tl.float32)
    if ADD:
        value = tl.load(out + first + k, mask=inside, other=0.0) + value
    tl.store(out + first + k, value, mask=inside)


def encode(
    x: Tensor,
    bucket: int,
    bits: int,
    l2: bool,
    clip: float,
    seed: int,
    first: int,
    scales: Tensor,
    packed: Tensor,
) -> int:
    """As ``hpcopt.kernels.levels.encode``, on tensors of one device: packed is uint8. Returns the bits of the largest
    magnitude if it is not finite, else 0; waits for the device.
    """
    start, high = rng.words(seed, first)
    worst, units = worst_of(x), float(((1 << (bits - 1)) - 1) * 2.0 ** (32 - bits))
    launch(_encode, len(scales), x, scales, packed, worst, x.numel(), start, high, bucket, bits, units, l2, clip)
    return int(worst)


def decode(scales: Tensor, packed: Tensor, bucket: int, bits: int, weight: float, add: bool, out: Tensor) -> None:
    """As ``hpcopt.kernels.levels.decode``."""
    levels = (1 << (bits - 1)) - 1
    steps = (scales.double() * weight / levels).float()
    too_large = (steps * levels).isinf() & steps.isfinite()
    steps = torch.where(too_large, torch.nextafter(steps, torch.zeros_like(steps)), steps)
    launch(_decode, triton.cdiv(out.numel(), BLOCK.value), steps, packed, out, out.numel(), bucket, bits, add)


def worst(x: Tensor) -> int:
    """The bits of Inf if x holds Inf or NaN, else 0; waits for the device."""
    return 0 if bool(torch.isfinite(x).all()) else int(NOT_FINITE.value)
