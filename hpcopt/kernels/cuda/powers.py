"""Rounding to powers of two, as ``hpcopt.kernels.powers``."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hpcopt.kernels.cuda import packing, rng
from hpcopt.kernels.cuda.launch import launch
from hpcopt.kernels.cuda.levels import LIFT, MAGNITUDE, TINY, largest, note_worst, per_scale
from hpcopt.kernels.cuda.parts import SIZES, part_of, programs, seen_as, sizes, write
from hpcopt.kernels.cut import Cut

BLOCK = packing.BLOCK
HALF = tl.constexpr(1 << 22)
POWER_127 = tl.constexpr(0x7F000000)


@triton.jit(do_not_specialize=[*SIZES, "start", "high"])
def _encode(x, packed, worst, n, each, longer, grain, stride, programs, start, high, NEAREST: tl.constexpr):
    part, block, begin, size = part_of(n, each, longer, grain, programs)
    first = block * BLOCK
    if first >= size:
        return
    count = tl.minimum(size - first, BLOCK).to(tl.int32)
    x += begin + first
    packed += part * stride + first // 8 * 9
    k = tl.arange(0, BLOCK)
    magnitude = tl.load(x + k, mask=k < count, other=0.0).to(tl.int32, bitcast=True) & MAGNITUDE
    if NEAREST:
        rounded = magnitude + HALF
    else:
        rounded = magnitude + (rng.draw(start, high, begin + first + k) >> 9).to(tl.int32)
    tl.store(packed + k, (rounded >> 23).to(tl.uint8), mask=k < count)
    top = tl.max(magnitude, 0)
    tl.atomic_max(worst, top, mask=top >= POWER_127)
    packing.put(_sign, (x,), 0, count, 1, packed + count)


@triton.jit
def _sign(k, inside, x):
    bits = tl.load(x + k, mask=inside, other=0.0).to(tl.uint32, bitcast=True)
    return (bits >> 31).to(tl.int32)


@triton.jit(do_not_specialize=SIZES)
def _decode(packed, out, n, each, longer, grain, stride, programs, weight, ADD: tl.constexpr):
    part, block, begin, size = part_of(n, each, longer, grain, programs)
    first = block * BLOCK
    if first >= size:
        return
    count = tl.minimum(size - first, BLOCK).to(tl.int32)
    packed += part * stride + first // 8 * 9
    out += begin
    k = tl.arange(0, BLOCK)
    inside = k < count
    exponents = tl.load(packed + k, mask=inside, other=0).to(tl.int32)
    signs = packing.get(packed + count, k, inside, count, 1)
    value = weight * ((signs << 31) | (exponents << 23)).to(tl.float32, bitcast=True)
    write(out, first + k, value, inside, ADD)


@triton.jit
def _levels(k, inside, x, lift, factor, start, high, first, BITS: tl.constexpr):
    value = tl.load(x + k, mask=inside, other=0.0)
    dice = (rng.draw(start, high, first + k) >> 9).to(tl.int32)
    size = tl.abs(value * lift * factor)
    power = ((size.to(tl.int32, bitcast=True) + dice) >> 23) - 126
    small = (dice.to(tl.float32) < size * 8388608.0).to(tl.int32)
    level = tl.where(size < 1.0, small, tl.minimum(power, (1 << (BITS - 1)) - 1))
    return level | ((value < 0).to(tl.int32) << (BITS - 1))


@triton.jit(do_not_specialize=[*SIZES, "start", "high"])
def _dither(
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
):
    part, bucket, begin, size = part_of(n, each, longer, grain, programs)
    first = bucket * BUCKET
    if first >= size:
        return
    count = tl.minimum(size - first, BUCKET).to(tl.int32)
    x += begin + first
    top = largest(x, count, BUCKET)
    note_worst(worst, top)
    scale = top.to(tl.float32, bitcast=True)
    tl.store(scales + part * (stride // 4) + bucket, scale)
    lift = tl.where(scale < TINY, LIFT, 1.0)
    factor = per_scale(scale * lift, UNITS)
    packed += part * stride + 4 * tl.cdiv(size, BUCKET)
    packing.put_all(_levels, (x, lift, factor, start, high, begin + first, BITS), first, count, BITS, packed)


@triton.jit(do_not_specialize=SIZES)
def _undither(
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
    step = tl.load(scales + part * (stride // 4) + first // BUCKET) * weight
    packed += part * stride + 4 * tl.cdiv(size, BUCKET)
    out += begin
    k = tl.arange(0, BLOCK)
    inside = k < count
    codes = packing.get(packed + first // 8 * BITS, k, inside, count, BITS)
    top: tl.constexpr = (1 << (BITS - 1)) - 1
    level = codes & top
    power = ((level + (127 - top)) << 23).to(tl.float32, bitcast=True)
    power = tl.where(level == 0, 0.0, tl.where(codes > top, -power, power))
    value = step * power
    write(out, first + k, value, inside, ADD)


def encode(x: Tensor, cut: Cut, slots: Tensor, nearest: bool, seed: int, first: int, worst: Tensor) -> None:
    """As ``hpcopt.kernels.powers.encode`` of each part, into its slot, of slots, uint8, (parts, stride). worst, int32,
    (1,), gets the bits of the largest magnitude if that is 2^127 or more.
    """
    where, block = sizes(cut, slots, BLOCK.value), BLOCK.value
    launch(_encode, programs(cut, block), x, slots, worst, *where, *rng.words(seed, first), nearest)


def decode(slots: Tensor, cut: Cut, weight: float, add: bool, out: Tensor) -> None:
    """As ``hpcopt.kernels.powers.decode`` of each slot into its part of out."""
    launch(_decode, programs(cut, BLOCK.value), slots, out, *sizes(cut, slots, BLOCK.value), weight, add)


def dither(x: Tensor, cut: Cut, slots: Tensor, bucket: int, bits: int, seed: int, first: int, worst: Tensor) -> None:
    """As ``hpcopt.kernels.powers.dither`` of each part: its scales, then its codes, at the head of its slot. worst gets
    the bits of the largest magnitude if that is not finite.
    """
    units, words = 2.0 ** ((1 << (bits - 1)) - 2), rng.words(seed, first)
    floats, where = seen_as(slots, torch.float32), sizes(cut, slots, bucket)
    launch(_dither, programs(cut, bucket), x, floats, slots, worst, *where, *words, bucket, bits, units)


def undither(slots: Tensor, cut: Cut, bucket: int, bits: int, weight: float, add: bool, out: Tensor) -> None:
    """As ``hpcopt.kernels.powers.undither`` of each slot into its part of out."""
    floats, where = seen_as(slots, torch.float32), sizes(cut, slots, BLOCK.value)
    launch(_undither, programs(cut, BLOCK.value), floats, slots, out, *where, weight, bucket, bits, add)
