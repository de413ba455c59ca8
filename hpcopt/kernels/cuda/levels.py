"""Uniform stochastic quantisation, as ``hpcopt.kernels.levels``: a program a bucket to encode, a block to decode."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hpcopt.kernels.cuda import packing, rng, sums
from hpcopt.kernels.cuda.launch import launch
from hpcopt.kernels.cuda.parts import SIZES, bits_of, part_of, programs, seen_as, sizes, write
from hpcopt.kernels.cut import Cut

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


@triton.jit(do_not_specialize=[*SIZES, "start", "high"])
def _encode(
    x,
    scales,
    packed,
    worst,
    n,
    each,
    longer,
    grain,
    stride,
    programs,
    start,
    high,
    BUCKET: tl.constexpr,
    BITS: tl.constexpr,
    UNITS: tl.constexpr,
    L2: tl.constexpr,
    CLIP: tl.constexpr,
):
    part, bucket, begin, size = part_of(n, each, longer, grain, programs)
    first = bucket * BUCKET
    if first >= size:
        return
    count = tl.minimum(size - first, BUCKET).to(tl.int32)
    x += begin + first
    top = largest(x, count, BUCKET)
    scale = top.to(tl.float32, bitcast=True)
    if L2:
        scale = tl.maximum(tl.sqrt(sums.sum_of_squares(x, count, BUCKET)).to(tl.float32), scale)
        top = tl.maximum(top, scale.to(tl.int32, bitcast=True))  # the norm may overflow
    if CLIP > 0:
        mean = sums.sum_of_squares(x, count, BUCKET) / count.to(tl.float64)
        scale = tl.minimum(scale, (tl.sqrt(mean) * CLIP).to(tl.float32))
    note_worst(worst, top)
    tl.store(scales + part * (stride // 4) + bucket, scale)
    lift = tl.where(scale < TINY, LIFT, 1.0)
    factor = per_scale(scale * lift, UNITS)
    packed += part * stride + 4 * tl.cdiv(size, BUCKET)
    args = (x, scale, lift, factor, start, high, begin + first, BITS, CLIP)
    packing.put_all(_codes, args, first, count, BITS, packed)


@triton.jit
def within(step, LEVELS: tl.constexpr):
    """As ``hpcopt.kernels.levels.within``."""
    bits = step.to(tl.int32, bitcast=True)
    finite = (bits & MAGNITUDE) < NOT_FINITE
    overflows = ((step * LEVELS).to(tl.int32, bitcast=True) & MAGNITUDE) == NOT_FINITE
    return tl.where(overflows & finite, (bits - 1).to(tl.float32, bitcast=True), step)


@triton.jit(do_not_specialize=[*SIZES, "weight"])
def _decode(
    scales,
    packed,
    out,
    n,
    each,
    longer,
    grain,
    stride,
    programs,
    weight,
    BUCKET: tl.constexpr,
    BITS: tl.constexpr,
    ADD: tl.constexpr,
):
    part, block, begin, size = part_of(n, each, longer, grain, programs)
    first = block * BLOCK
    if first >= size:
        return
    count = tl.minimum(size - first, BLOCK).to(tl.int32)
    levels: tl.constexpr = (1 << (BITS - 1)) - 1
    scale = tl.load(scales + part * (stride // 4) + first // BUCKET).to(tl.float64)
    step = within((scale * weight.to(tl.int64).to(tl.float64, bitcast=True) / levels).to(tl.float32), levels)
    packed += part * stride + 4 * tl.cdiv(size, BUCKET)
    k = tl.arange(0, BLOCK)
    inside = k < count
    codes = packing.get(packed + first // 8 * BITS, k, inside, count, BITS)
    value = step * (codes - levels).to(tl.float32)
    write(out, begin + first + k, value, inside, ADD)


def encode(
    x: Tensor,
    cut: Cut,
    slots: Tensor,
    bucket: int,
    bits: int,
    l2: bool,
    clip: float,
    seed: int,
    first: int,
    worst: Tensor,
) -> None:
    """As ``hpcopt.kernels.levels.encode`` of each part: its scales, then its codes, at the head of its slot, of slots,
    uint8, (parts, stride). worst, int32, (1,), gets the bits of the largest magnitude if that is not finite.
    """
    start, high = rng.words(seed, first)
    units = float(((1 << (bits - 1)) - 1) * 2.0 ** (32 - bits))
    where = sizes(cut, slots, bucket)
    floats = seen_as(slots, torch.float32)
    launch(_encode, programs(cut, bucket), x, floats, slots, worst, *where, start, high, bucket, bits, units, l2, clip)


def decode(slots: Tensor, cut: Cut, bucket: int, bits: int, weight: float, add: bool, out: Tensor) -> None:
    """As ``hpcopt.kernels.levels.decode`` of each slot into its part of out."""
    block = BLOCK.value
    where, floats = sizes(cut, slots, block), seen_as(slots, torch.float32)
    launch(_decode, programs(cut, block), floats, slots, out, *where, bits_of(weight), bucket, bits, add)


def worst(x: Tensor) -> int:
    """The bits of Inf if x holds Inf or NaN, else 0; waits for the device."""
    return 0 if bool(torch.isfinite(x).all()) else int(NOT_FINITE.value)
