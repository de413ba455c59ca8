"""Sums in the order of the CPU's: 64 running sums, lane j adding values j, j + 64, ...; then the lanes by halves."""

import triton
import triton.language as tl
from torch import Tensor

from hpcopt.kernels.cuda.launch import launch

BLOCK = tl.constexpr(1024)
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


@triton.jit(do_not_specialize=["n", "rows", "after"])
def _add_rows(matrix, out, n, rows, after):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.load(out + i, mask=i < n, other=0.0)
    for distance in range(1, rows):
        row = (after + rows - distance) % rows
        total += tl.load(matrix + row.to(tl.int64) * n + i, mask=i < n, other=0.0)
    tl.store(out + i, total, mask=i < n)


def add_rows(matrix: Tensor, out: Tensor, after: int) -> None:
    """Add rows of a matrix, (rows, n), float32, to out, (n,), one after the other: that before row ``after`` first, and
    so on around; row ``after`` is left out.
    """
    launch(_add_rows, triton.cdiv(out.numel(), BLOCK.value), matrix, out, out.numel(), len(matrix), after)
