"""Rounding to powers of two, as ``hpcopt.kernels.powers``."""

import triton
import triton.language as tl
from torch import Tensor

from hpcopt.kernels.cuda import packing, rng
from hpcopt.kernels.cuda.launch import launch, worst_of
from hpcopt.kernels.cuda.levels import LIFT, MAGNITUDE, TINY, largest, note_worst, per_scale

BLOCK = packing.BLOCK
HALF = tl.constexpr(1 << 22)
POWER_127 = tl.constexpr(0x7F000000)


@triton.jit(do_not_specialize=["start", "high"])
def _encode(x, packed, worst, n, start, high, NEAREST: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * BLOCK
    count = tl.minimum(n - first, BLOCK).to(tl.int32)
    x += first
    packed += first // 8 * 9
    k = tl.arange(0, BLOCK)
    magnitude = tl.load(x + k, mask=k < count, other=0.0).to(tl.int32, bitcast=True) & MAGNITUDE
    if NEAREST:
        rounded = magnitude + HALF
    else:
        rounded = magnitude + (rng.draw(start, high, first + k) >> 9).to(tl.int32)
    tl.store(packed + k, (rounded >> 23).to(tl.uint8), mask=k < count)
    top = tl.max(magnitude, 0)
    tl.atomic_max(worst, top, mask=top >= POWER_127)
    packing.put(_sign, (x,), 0, count, 1, packed + count)


@triton.jit
def _sign(k, inside, x):
    bits = tl.load(x + k, mask=inside, other=0.0).to(tl.uint32, bitcast=True)
    return (bits >> 31).to(tl.int32)


@triton.jit
def _decode(packed, out, n, weight, ADD: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * BLOCK
    count = tl.minimum(n - first, BLOCK).to(tl.int32)
    packed += first // 8 * 9
    k = tl.arange(0, BLOCK)
    inside = k < count
    exponents = tl.load(packed + k, mask=inside, other=0).to(tl.int32)
    signs = packing.get(packed + count, k, inside, count, 1)
    value = weight * ((signs << 31) | (exponents << 23)).to(tl.float32, bitcast=True)
    if ADD:
        value = tl.load(out + first + k, mask=inside, other=0.0) + value
    tl.store(out + first + k, value, mask=inside)


@triton.jit
def _levels(k, inside, x, lift, factor, start, high, first, BITS: tl.constexpr):
    value = tl.load(x + k, mask=inside, other=0.0)
    dice = (rng.draw(start, high, first + k) >> 9).to(tl.int32)
    size = tl.abs(value * lift * factor)
    power = ((size.to(tl.int32, bitcast=True) + dice) >> 23) - 126
    small = (dice.to(tl.float32) < size * 8388608.0).to(tl.int32)
    level = tl.where(size < 1.0, small, tl.minimum(power, (1 << (BITS - 1)) - 1))
    return level | ((value < 0).to(tl.int32) << (BITS - 1))


@triton.jit(do_not_specialize=["start", "high"])
def _dither(x, scales, packed, worst, n, start, high, BUCKET: tl.constexpr, BITS: tl.constexpr, UNITS: tl.constexpr):
    bucket = tl.program_id(0).to(tl.int64)
    first = bucket * BUCKET
    count = tl.minimum(n - first, BUCKET).to(tl.int32)
    x += first
    top = largest(x, count, BUCKET)
    note_worst(worst, top)
    scale = top.to(tl.float32, bitcast=True)
    tl.store(scales + bucket, scale)
    lift = tl.where(scale < TINY, LIFT, 1.0)
    factor = per_scale(scale * lift, UNITS)
    packing.put_all(_levels, (x, lift, factor, start, high, first, BITS), first, count, BITS, packed)


@triton.jit
def _undither(steps, packed, out, n, BUCKET: tl.constexpr, BITS: tl.constexpr, ADD: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * BLOCK
    count = tl.minimum(n - first, BLOCK).to(tl.int32)
    k = tl.arange(0, BLOCK)
    inside = k < count
    codes = packing.get(packed + first // 8 * BITS, k, inside, count, BITS)
    top: tl.constexpr = (1 << (BITS - 1)) - 1
    level = codes & top
    power = ((level + (127 - top)) << 23).to(tl.float32, bitcast=True)
    power = tl.where(level == 0, 0.0, tl.where(codes > top, -power, power))
    value = tl.load(steps + first // BUCKET) * power
    if ADD:
        value = tl.load(out + first + k, mask=inside, other=0.0) + value
    tl.store(out + first + k, value, mask=inside)


def encode(x: Tensor, nearest: bool, seed: int, first: int, packed: Tensor) -> int:
    """As ``hpcopt.kernels.powers.encode``. Returns the bits of the largest magnitude if it is 2^127 or more, else 0;
    waits for the device.
    """
    start, high = rng.words(seed, first)
    worst = worst_of(x)
    launch(_encode, triton.cdiv(x.numel(), BLOCK.value), x, packed, worst, x.numel(), start, high, nearest)
    return int(worst)


def decode(packed: Tensor, weight: float, add: bool, out: Tensor) -> None:
    """As ``hpcopt.kernels.powers.decode``."""
    launch(_decode, triton.cdiv(out.numel(), BLOCK.value), packed, out, out.numel(), weight, add)


def dither(x: Tensor, bucket: int, bits: int, seed: int, first: int, scales: Tensor, packed: Tensor) -> int:
    """As ``hpcopt.kernels.powers.dither``. Returns the bits of the largest magnitude if it is not finite, else 0; waits
    for the device.
    """
    start, high = rng.words(seed, first)
    worst, units = worst_of(x), 2.0 ** ((1 << (bits - 1)) - 2)
    launch(_dither, len(scales), x, scales, packed, worst, x.numel(), start, high, bucket, bits, units)
    return int(worst)


def undither(scales: Tensor, packed: Tensor, bucket: int, bits: int, weight: float, add: bool, out: Tensor) -> None:
    """As ``hpcopt.kernels.powers.undither``."""
    steps = scales * weight
    launch(_undither, triton.cdiv(out.numel(), BLOCK.value), steps, packed, out, out.numel(), bucket, bits, add)
