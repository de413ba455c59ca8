"""Sums in the order of the CPU's: 64 running sums, lane j adding values j, j + 64, ...; then the lanes by halves."""

import triton
import triton.language as tl

LANES = tl.constexpr(64)


@triton.jit
def halves(sums):
    """The sum of 64 lanes: j and j + 32, then j and j + 16, and so on. Two terms have one sum, in whatever order."""
    sums = tl.sum(tl.reshape(sums, (2, 32)), 0)
    sums = tl.sum(tl.reshape(sums, (2, 16)), 0)
    sums = tl.sum(tl.reshape(sums, (2, 8)), 0)
    sums = tl.sum(tl.reshape(sums, (2, 4)), 0)
    sums = tl.sum(tl.reshape(sums, (2, 2)), 0)
    return tl.sum(sums, 0)


@triton.jit
def sum_of_squares(x, count, BUCKET: tl.constexpr):
    """Of the ``count`` values at x, in float64, where every square is exact."""
    lane = tl.arange(0, LANES)
    sums = tl.zeros((LANES,), tl.float64)
    for i in range(0, BUCKET, LANES):
        value = tl.load(x + i + lane, mask=i + lane < count, other=0.0).to(tl.float64)
        sums += value * value
    return halves(sums)
