"""Signs packed into words, as ``hpcopt.kernels.bits``: 32-bit words here, two to each of its own, in the same bytes."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hpcopt.kernels.cuda import sums
from hpcopt.kernels.cuda.launch import launch, worst_of
from hpcopt.kernels.cuda.levels import MAGNITUDE, NOT_FINITE

LANES = sums.LANES
PACKED = tl.constexpr(2048)  # values that a program packs or unpacks


@triton.jit
def _words(value):
    """The sign bits of values, (words, 32), as uint32, (words,)."""
    return tl.sum((value < 0).to(tl.uint32) << tl.arange(0, 32)[None, :].to(tl.uint32), 1)


@triton.jit
def _pack(x, words, worst, n):
    first = tl.program_id(0).to(tl.int64) * PACKED
    i = first + tl.arange(0, PACKED // 32)[:, None] * 32 + tl.arange(0, 32)[None, :]
    value = tl.load(x + i, mask=i < n, other=0.0)
    top = tl.max(tl.max(value.to(tl.int32, bitcast=True) & MAGNITUDE, 1), 0)
    tl.atomic_max(worst, top, mask=top >= NOT_FINITE)
    word = first // 32 + tl.arange(0, PACKED // 32)
    tl.store(words + word, _words(value).to(tl.int32, bitcast=True), mask=word < (n + 63) // 64 * 2)


@triton.jit
def _unpack(words, steps, out, n, BUCKET: tl.constexpr, ADD: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * PACKED + tl.arange(0, PACKED)
    inside = i < n
    word = tl.load(words + i // 32, mask=inside, other=0)
    step = tl.load(steps + i // BUCKET, mask=inside, other=0.0) if BUCKET else tl.load(steps)
    value = tl.where((word >> (i % 32).to(tl.int32)) & 1 != 0, -step, step)
    if ADD:
        value = tl.load(out + i, mask=inside, other=0.0) + value
    tl.store(out + i, value, mask=inside)


@triton.jit
def _encode(x, scales, words, worst, n, BUCKET: tl.constexpr):
    bucket = tl.program_id(0).to(tl.int64)
    x += bucket * BUCKET
    words += bucket * (BUCKET // 32)
    count = tl.minimum(n - bucket * BUCKET, BUCKET).to(tl.int32)
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
    top = scale.to(tl.int32, bitcast=True) & MAGNITUDE
    tl.atomic_max(worst, top, mask=top >= NOT_FINITE)


def pack(x: Tensor, words: Tensor) -> int:
    """As ``hpcopt.kernels.bits.pack``; words is int32, two for each of its own. Waits for the device."""
    worst = worst_of(x)
    launch(_pack, triton.cdiv(x.numel(), PACKED.value), x, words, worst, x.numel())
    return int(worst)


def unpack(words: Tensor, scale: float, add: bool, out: Tensor) -> None:
    """As ``hpcopt.kernels.bits.unpack``."""
    steps = torch.full((1,), float(scale), device=out.device)
    launch(_unpack, triton.cdiv(out.numel(), PACKED.value), words, steps, out, out.numel(), 0, add)


def encode(x: Tensor, bucket: int, scales: Tensor, words: Tensor) -> int:
    """As ``hpcopt.kernels.bits.encode``. Waits for the device."""
    worst = worst_of(x)
    launch(_encode, len(scales), x, scales, words, worst, x.numel(), bucket, num_warps=1)
    return int(worst)


def decode(scales: Tensor, words: Tensor, bucket: int, weight: float, add: bool, out: Tensor) -> None:
    """As ``hpcopt.kernels.bits.decode``."""
    steps = (scales.double() * weight).float()
    launch(_unpack, triton.cdiv(out.numel(), PACKED.value), words, steps, out, out.numel(), bucket, add)
