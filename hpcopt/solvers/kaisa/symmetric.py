"""Symmetric matrices kept as their lower halves, in a form that matrix products can write and read directly.

A matrix is cut into panels of consecutive rows; panel [first, last) keeps columns 0 to ``last``. One panel is one
contiguous rectangle, so a Gram matrix is accumulated in place, panel by panel, with half the work of the square, and
nothing is ever packed by index. About 1/16 of a large triangle is kept twice (the blocks on the diagonal).
"""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from hpcopt.solvers.kaisa.products import NARROW, narrow_is_quick, times_transposed, transposed, worked_in

LEAST_ROWS = 64  # of a product's left factor, for speed
LEAST_HALVED = 256  # rows of a symmetric product of which it pays to compute half
LEAST_NARROW = 128  # columns from which bfloat16 gains anything


class Panel(NamedTuple):
    """Rows [first, last) and columns [0, last), at ``offset`` of the packed values."""

    first: int
    last: int
    offset: int

    @property
    def length(self) -> int:
        """Values in the panel."""
        return (self.last - self.first) * self.last


@lru_cache
def panels(size: int) -> tuple[Panel, ...]:
    """The panels of a symmetric matrix with ``size`` rows."""
    height = max(32, -(-size // 256) * 16)
    result, offset = [], 0
    for first in range(0, size, height):
        result.append(Panel(first, min(first + height, size), offset))
        offset += result[-1].length
    return tuple(result)


def packed_length(size: int) -> int:
    """Values kept of a symmetric matrix with ``size`` rows."""
    last = panels(size)[-1]
    return last.offset + last.length


@lru_cache
def diagonal_index(size: int, device: torch.device) -> Tensor:
    """Where the diagonal stands among the packed values; shape (size,), int64, on the device."""
    index = torch.cat([p.offset + torch.arange(p.last - p.first) * (p.last + 1) + p.first for p in panels(size)])
    return index.to(device)


def add_gram(packed: Tensor, x: Tensor, ones: bool = False, narrow: bool = False) -> None:
    """Add ``x^T x`` to packed matrices in place.

    Args:
        packed: shape (blocks, packed_length(size)).
        x: rows, shape (blocks, rows, size), or with ``ones`` (blocks, rows, size - 1).
        ones: act as if x had one more column, of ones.
        narrow: where that is quicker, round x and the sum over its rows to bfloat16; in between is float32.
    """
    columns = x.shape[2]
    size = columns + ones
    features = _transposed(x)
    if len(packed) == 1:
        narrow = narrow and columns >= LEAST_NARROW and x.dtype == torch.float32 and narrow_is_quick(x.device)
        _add_one_gram(packed[0], features[0].to(NARROW) if narrow else features[0], size)
    else:
        for panel in panels(size):
            into = panel_view(packed, panel)[:, : columns - panel.first, : min(panel.last, columns)]
            into.baddbmm_(features[:, panel.first : panel.last], features[:, : panel.last].transpose(1, 2))
    if ones:
        last, sums = panels(size)[-1], features.sum(2)
        border = panel_view(packed, last)
        border[:, -1, :columns] += sums
        border[:, :-1, -1] += sums[:, last.first :]
        border[:, -1, -1] += x.shape[1]


def _add_one_gram(packed: Tensor, features: Tensor, size: int) -> None:
    """Add ``features features^T`` to packed values; a product yields as many panels as keep it efficient."""
    columns = len(features)
    together = -(-LEAST_ROWS // panels(size)[0].last)
    for i in range(0, len(panels(size)), together):
        group = panels(size)[i : i + together]
        first, last = group[0].first, min(group[-1].last, columns)
        if first == last:
            break  # the row of ones
        new = times_transposed(features[first:last], features[:last])
        for panel in group:
            part = new[panel.first - first : panel.last - first, : panel.last]
            offset = packed.storage_offset() + panel.offset
            packed.as_strided(part.shape, (panel.last, 1), offset).add_(part)


def _transposed(x: Tensor) -> Tensor:
    """Matrices transposed; torch is quick at it for one at a time only."""
    return transposed(x[0]).unsqueeze(0) if len(x) == 1 else x.transpose(1, 2).contiguous()


def add_matrix(packed: Tensor, matrix: Tensor) -> None:
    """Add symmetric matrices, shape (blocks, size, size), to packed ones in place."""
    for panel in panels(matrix.shape[-1]):
        panel_view(packed, panel).add_(matrix[:, panel.first : panel.last, : panel.last])


def pack(matrix: Tensor, out: Tensor) -> Tensor:
    """Write the lower halves of matrices, shape (blocks, size, size), to out, shape (blocks, packed_length(size))."""
    for panel in panels(matrix.shape[-1]):
        panel_view(out, panel).copy_(matrix[:, panel.first : panel.last, : panel.last])
    return out


def unpack(packed: Tensor, size: int, dtype: torch.dtype | None = None, out: Tensor | None = None) -> Tensor:
    """Give the full matrices, shape (blocks, size, size), of packed ones; in flat memory ``out`` if that is given."""
    shape = len(packed), size, size
    full = packed.new_empty(shape, dtype=dtype or packed.dtype) if out is None else out[: math.prod(shape)].view(shape)
    for panel in panels(size):
        view = panel_view(packed, panel)
        full[:, panel.first : panel.last, : panel.last] = view
        if panel.first:
            full[:, : panel.first, panel.first : panel.last] = view[:, :, : panel.first].transpose(1, 2)
    return full


def multiply(packed: Tensor, x: Tensor, scratch: Tensor | None = None) -> Tensor:
    """Give the packed matrices times x, shape (blocks, size, k), in x's dtype and, for one matrix, laid out as x is.

    Matrices of another dtype than x are multiplied in theirs, summed in float32, or in float32 where that is quicker.
    ``scratch``, flat and of the matrices' dtype, has room for them unpacked: asking for fresh memory each time takes
    longer than to write it.
    """
    blocks, size, columns = x.shape
    if size == 1:
        return packed.to(x.dtype).unsqueeze(2) * x
    full = unpack(packed, size, out=scratch)
    if columns == 1:  # scale and bias of norms: many small matrices, which are slow as products
        return (full.to(x.dtype) * x.transpose(1, 2)).sum(2, keepdim=True)
    full = full.to(worked_in(full.dtype, full.device))
    if blocks > 1:
        return (full @ x.to(full.dtype)).to(x.dtype)
    return times(full[0], x[0].to(full.dtype)).to(x.dtype).unsqueeze(0)


def product(a: Tensor, b: Tensor) -> Tensor:
    """Give ``a b^T``, (n, n), where that is known to be symmetric: of ``b = a``, or of polynomials of one matrix. Of a
    large one in main memory no more than the lower half is computed, and some of the rest; the other half is its copy.
    """
    n = len(a)
    if n < LEAST_HALVED or not a.is_cpu:
        return times_transposed(a, b)
    out = a.new_empty(n, n)
    height = min(-(-n // 32) * 16, LEAST_HALVED)
    for first in range(0, n, height):
        last = min(first + height, n)
        times_transposed(a[first:last], b[:last], out[first:last, :last])
        out[:first, first:last] = out[first:last, :first].T
    return out


def times(matrix: Tensor, x: Tensor) -> Tensor:
    """Give a symmetric matrix, (n, n), times x, (n, k), laid out as x is: in rows, or a transposed matrix of rows."""
    return times_transposed(matrix, x.T) if x.is_contiguous() else times_transposed(x.T.contiguous(), matrix).T


def trace(packed: Tensor, size: int) -> Tensor:
    """Sum of the diagonals of all the packed matrices."""
    return packed[:, diagonal_index(size, packed.device)].sum(dtype=torch.float64)


def panel_view(packed: Tensor, panel: Panel) -> Tensor:
    """One panel of every matrix, shape (blocks, rows, columns), a view."""
    rows = packed[:, panel.offset : panel.offset + panel.length]
    return rows.view(len(packed), panel.last - panel.first, panel.last)
