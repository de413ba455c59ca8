"""Signs packed into words, as ``hpcopt.kernels.bits``: 32-bit words here, two to each of its own, in the same bytes."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hpcopt.kernels.cuda import sums
from hpcopt.kernels.cuda.launch import launch
from hpcopt.kernels.cuda.levels import MAGNITUDE, NOT_FINITE
from hpcopt.kernels.cuda.parts import SIZES, bits_of, part_of, programs, seen_as, sizes, write
from hpcopt.kernels.cut import Cut

LANES = sums.LANES
PACKED = tl.constexpr(2048)  # values that a program packs or unpacks


@triton.jit
def _words(value):
    """The sign bits of values, (words, 32), as uint32, (words,)."""
    return tl.sum((value < 0).to(tl.uint32) << tl.arange(0, 32)[None, :].to(tl.uint32), 1)


@triton.jit(do_not_specialize=SIZES)
def _pack(x, words, worst, n, each, longer, grain, stride, programs):
    part, block, begin, size = part_of(n, each, longer, grain, programs)
    first = block * PACKED
    if first >= size:
        return
    i = first + tl.arange(0, PACKED // 32)[:, None] * 32 + tl.arange(0, 32)[None, :]
    value = tl.load(x + begin + i, mask=i < size, other=0.0)
    top = tl.max(tl.max(value.to(tl.int32, bitcast=True) & MAGNITUDE, 1), 0)
    tl.atomic_max(worst, top, mask=top >= NOT_FINITE)
    word = first // 32 + tl.arange(0, PACKED // 32)
    words += part * (stride // 4)
    tl.store(words + word, _words(value).to(tl.int32, bitcast=True), mask=word < (size + 63) // 64 * 2)


@triton.jit
def _scale_words(size, BUCKET: tl.constexpr):
    """Words of 32 bits that a part's scales fill, two by two."""
    return (tl.cdiv(size, BUCKET) + 1) // 2 * 2


@triton.jit(do_not_specialize=[*SIZES, "weight"])
def _unpack(
    scales, words, out, n, each, longer, grain, stride, programs, weight, BUCKET: tl.constexpr, ADD: tl.constexpr
):
    part, block, begin, size = part_of(n, each, longer, grain, programs)
    i = block * PACKED + tl.arange(0, PACKED)
    inside = i < size
    words += part * (stride // 4)
    factor = weight.to(tl.int64).to(tl.float64, bitcast=True)
    if BUCKET:
        scale = tl.load(scales + part * (stride // 4) + i // BUCKET, mask=inside, other=0.0)
        step = (scale.to(tl.float64) * factor).to(tl.float32)
        words += _scale_words(size, BUCKET)
    else:
        step = factor.to(tl.float32)
    word = tl.load(words + i // 32, mask=inside, other=0)
    value = tl.where((word >> (i % 32).to(tl.int32)) & 1 != 0, -step, step)
    write(out, begin + i, value, inside, ADD)


@triton.jit(do_not_specialize=SIZES)
def _encode(x, scales, words, worst, n, each, longer, grain, stride, programs, BUCKET: tl.constexpr):
    part, bucket, begin, size = part_of(n, each, longer, grain, programs)
    if bucket * BUCKET >= size:
        return
    x += begin + bucket * BUCKET
    scales += part * (stride // 4)
    words += part * (stride // 4) + _scale_words(size, BUCKET) + bucket * (BUCKET // 32)
    count = tl.minimum(size - bucket * BUCKET, BUCKET).to(tl.int32)
    lane = tl.arange(0, LANES)
    running = tl.zeros((LANES,), tl.float32)
    for i in range(0, BUCKET, 512):
        for row in tl.static_range(0, 512, LANES):  # unrolled: all loads are on their way before the first sum
            k = i + row + lane
            value = tl.load(x + k, mask=k < count, other=0.0)
            running += tl.abs(value)
            word = _words(tl.reshape(value, (2, 32))).to(tl.int32, bitcast=True)
            tl.store(words + (i + row) // 32 + tl.arange(0, 2), word, mask=i + row + tl.zeros((2,), tl.int32) < count)
    total = sums.halves(running).to(tl.float64)
    if (total.to(tl.float32).to(tl.int32, bitcast=True) & MAGNITUDE) >= NOT_FINITE:
        total = tl.zeros((), tl.float64)  # an Inf or NaN, or huge values whose float32 sums overflow
        for k in range(count):
            total += tl.abs(tl.load(x + k)).to(tl.float64)
    scale = (total / count.to(tl.float64)).to(tl.float32)
    tl.store(scales + bucket, scale)
    last = bucket == tl.cdiv(size, BUCKET) - 1
    tl.store(scales + bucket + 1, 0.0, mask=last & (bucket % 2 == 0))  # an odd number of scales is filled up
    top = scale.to(tl.int32, bitcast=True) & MAGNITUDE
    tl.atomic_max(worst, top, mask=top >= NOT_FINITE)


def pack(x: Tensor, cut: Cut, slots: Tensor, worst: Tensor) -> None:
    """As ``hpcopt.kernels.bits.pack`` of each part, into its slot, of slots, uint8, (parts, stride). worst, int32,
    (1,), gets the bits of the largest magnitude if that is not finite.
    """
    block, words = PACKED.value, seen_as(slots, torch.int32)
    launch(_pack, programs(cut, block), x, words, worst, *sizes(cut, slots, block))


def unpack(slots: Tensor, cut: Cut, scale: float, add: bool, out: Tensor) -> None:
    """As ``hpcopt.kernels.bits.unpack`` of each slot into its part of out."""
    _unpacked(slots, cut, 0, scale, add, out)


def encode(x: Tensor, cut: Cut, slots: Tensor, bucket: int, worst: Tensor) -> None:
    """As ``hpcopt.kernels.bits.encode`` of each part: its scales, an even number of them, then its words, at the head
    of its slot. worst gets the bits of a scale that is not finite.
    """
    views = seen_as(slots, torch.float32), seen_as(slots, torch.int32)
    launch(_encode, programs(cut, bucket), x, *views, worst, *sizes(cut, slots, bucket), bucket, num_warps=1)


def decode(slots: Tensor, cut: Cut, bucket: int, weight: float, add: bool, out: Tensor) -> None:
    """As ``hpcopt.kernels.bits.decode`` of each slot into its part of out."""
    _unpacked(slots, cut, bucket, weight, add, out)


def _unpacked(slots: Tensor, cut: Cut, bucket: int, weight: float, add: bool, out: Tensor) -> None:
    block, views = PACKED.value, (seen_as(slots, torch.float32), seen_as(slots, torch.int32))
    where = sizes(cut, slots, block)
    launch(_unpack, programs(cut, block), *views, out, *where, bits_of(weight), bucket, add)
