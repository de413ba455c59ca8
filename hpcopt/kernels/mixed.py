"""Rows of a matrix mixed by groups before they are rounded, and back: BHQ (arXiv:2010.14298).

In a group of n rows, of which one leads, ``S = Q diag(s)``: row i is multiplied by its scale s_i, then all are
reflected by ``Q = I - beta u u^T``, ``u = 1 / sqrt(n) - e_1``, ``beta = 1 / (1 - 1 / sqrt(n))``; e_1 is the leader's
place. ``hpcopt.lowbit.reflection`` has the reasons for groups and scales. Here rows are grouped within blocks of rows,
so that a block stays in the cache, and a power of two in all scales brings its values near 1. Of a reflection only a
row for each group is kept: its dot product with u.
"""

import math

import numpy as np
from numba import njit

from hpcopt.kernels import packing, rows

SMALLEST = 1e-8  # of a row's range, as part of the largest
MOST = 100  # of the exponent of two in scales, of either sign


@njit(nogil=True, cache=True, error_model="numpy")
def cube_roots(x):
    """Of each x > 0, float64, (n,), by additions, multiplications and divisions alone: the same bits on any machine."""
    y = np.empty(x.size)
    for i in range(x.size):
        _, exponent = math.frexp(x[i])
        y[i] = math.ldexp(1.0, exponent // 3 + 1)  # above the root, from where Newton's steps go down
    for _ in range(8):
        for i in range(x.size):  # in vectors, as the steps of one root could not be
            y[i] = (2 * y[i] + x[i] / (y[i] * y[i])) / 3
    return y


@njit(nogil=True, cache=True, error_model="numpy")
def group(ranges, leaders, scales):
    """Put rows of these ranges, float64, (n,), into groups: the number of each row's leader, and its scale."""
    count = ranges.size
    largest = 0.0
    for i in range(count):
        largest = max(largest, ranges[i])
    sizes = ranges + (SMALLEST * largest if largest > 0 else 1.0)
    order = np.argsort(-sizes, kind="mergesort")
    sums, total = np.empty(count), 0.0
    for k in range(count):
        total += sizes[order[k]]
        sums[k] = total
    leads = 1
    for k in range(count):
        if (count - 1 - k) * sizes[order[k]] > sums[k]:
            leads = k + 1
    dealt = np.full(leads + 1, leads)  # rows of the order that are in the groups before
    cubes = np.ones(leads)
    for k in range(leads):
        dealt[k + 1] += np.int64(np.rint((count - leads) * sums[k] / sums[leads - 1]))
        n = dealt[k + 1] - dealt[k] + 1
        if n > 1:
            root = np.sqrt(np.float64(n))
            off = 1 / (n - root)  # of a small row's column: 1 - off on the diagonal, else -off
            peak = max(abs(1 - off), 1 / root, off if n > 2 else 0.0)
            cubes[k] = (n - 1) * (sizes[order[k]] / root) / (sizes[order[dealt[k]]] * peak)
    roots = cube_roots(cubes)
    for k in range(leads):
        leaders[order[k]], scales[order[k]] = order[k], np.float32(1)
        for i in order[dealt[k] : dealt[k + 1]]:
            leaders[i], scales[i] = order[k], np.float32(roots[k])


@njit(nogil=True, cache=True)
def reflections(leaders, u, beta_u):
    """Fill u and beta u, float32, (n,), of each row, from its leader's number; False if one is out of range."""
    counts = np.zeros(leaders.size, np.int64)
    for i in range(leaders.size):
        if leaders[i] >= leaders.size:
            return False
        counts[leaders[i]] += 1
    for i in range(leaders.size):
        n = counts[leaders[i]]
        u[i] = beta_u[i] = 0
        if n > 1:
            along = 1 / np.sqrt(np.float64(n))
            entry = along - 1 if leaders[i] == i else along
            u[i], beta_u[i] = np.float32(entry), np.float32(entry / (1 - along))
    return True


@njit(nogil=True, cache=True)
def _multiple(x, factor, add, total):
    if add:
        for j in range(x.size):
            total[j] += factor * x[j]
    else:
        for j in range(x.size):
            total[j] = factor * x[j]


@njit(nogil=True, cache=True)
def _combine(x, scale, dots, factor, out):
    """Fill out with ``scale x - factor dots``; what ``rows.ends`` gives of that."""
    least, most, most_signed = rows.NO_ENDS
    for j in range(x.size):
        value = np.float32(scale * x[j] - factor * dots[j])
        out[j] = value
        least, most, most_signed = rows.further(value, least, most, most_signed)
    return rows.ordered(least, most, most_signed)


@njit(nogil=True, cache=True)
def _combine_scaled(x, dots, factor, scale, add, out):
    if add:
        for j in range(out.size):
            out[j] += scale * (x[j] - factor * dots[j])
    else:
        for j in range(out.size):
            out[j] = scale * (x[j] - factor * dots[j])


@njit(nogil=True, cache=True, error_model="numpy")
def encode(x, height, columns, bits, seed, first, centres, steps, scales, leaders, packed):
    """Fill centres, steps and scales, float32, and leaders, of each row, and the packed codes of x, float32, (n,).

    Rows are mixed within blocks of ``height`` rows of ``columns`` values; a short last row is not mixed. leaders:
    numbers within the block, unsigned. Else as ``hpcopt.kernels.rows.encode``.
    """
    codes = np.empty(packing.PADDED, np.uint8)
    dots, mixed = np.empty((min(height, centres.size), columns), np.float32), np.empty(columns, np.float32)
    u, beta_u, ranges = np.empty(height, np.float32), np.empty(height, np.float32), np.empty(height, np.float64)
    begun = np.empty(height, np.bool_)
    top, done = np.int32(0), np.int64(0)
    for begin in range(0, centres.size, height):
        count = min(height, centres.size - begin)
        block = x[begin * columns : (begin + count) * columns]
        whole = block.size // columns
        largest = np.int32(0)
        for i in range(count):
            low, high, size = rows.ends(block[i * columns : (i + 1) * columns])
            largest = max(largest, size)
            ranges[i] = np.float64(np.uint32(high).view(np.float32)) - np.float64(np.uint32(low).view(np.float32))
        top = max(top, largest)
        if top >= rows.NOT_FINITE:
            return top
        mine, scale = leaders[begin : begin + count], scales[begin : begin + count]
        if whole < count:
            mine[whole], scale[whole] = whole, 1
        if whole:
            group(ranges[:whole], mine[:whole], scale[:whole])
        _, exponent = math.frexp(np.float64(np.int32(largest).view(np.float32)))
        lift = np.float32(math.ldexp(1.0, -max(-MOST, min(MOST, exponent))))
        for i in range(count):
            scale[i] *= lift
        reflections(mine, u[:count], beta_u[:count])
        begun[:count] = False
        for i in range(count):
            row, leader = block[i * columns : (i + 1) * columns], mine[i]
            _multiple(row, np.float32(u[i] * scale[i]), begun[leader], dots[leader])
            begun[leader] = True
        for i in range(count):
            row = block[i * columns : (i + 1) * columns]
            out = mixed[: row.size]
            low, high, _ = _combine(row, scale[i], dots[mine[i]], beta_u[i], out)
            r = begin + i
            centres[r], steps[r], more, factor = rows.grid(low, high, bits)
            done = rows.put(out, (centres[r], more, factor), bits, r * columns, seed, first, codes, packed, done)
    rows.end(x.size, bits, codes, packed, done)
    return top


@njit(nogil=True, cache=True, error_model="numpy")
def decode(centres, steps, scales, leaders, packed, height, columns, bits, weight, add, out):
    """Write (or add, if ``add``) weight times the decoded values to out, float32, (n,); False, with out in part
    changed, if leaders are none.
    """
    codes = np.empty(packing.PADDED, np.uint8)
    shape = (min(height, centres.size), columns)
    dots, mixed = np.empty(shape, np.float32), np.empty(shape, np.float32)
    u, beta_u = np.empty(height, np.float32), np.empty(height, np.float32)
    done = np.int64(0)
    for begin in range(0, centres.size, height):
        count = min(height, centres.size - begin)
        mine = leaders[begin : begin + count]
        if not reflections(mine, u[:count], beta_u[:count]):
            return False
        block = out[begin * columns : (begin + count) * columns]
        dots[:count] = 0
        for i in range(count):
            r, size = begin + i, min(columns, block.size - i * columns)
            row = mixed[i, :size]
            done = rows.take(
                packed, done, r * columns, out.size, bits, centres[r], steps[r], codes, np.bool_(False), row
            )
            if u[i] != 0:
                _multiple(row, u[i], np.bool_(True), dots[mine[i]])
        for i in range(count):
            row = block[i * columns : (i + 1) * columns]
            scale = np.float32(weight / np.float64(scales[begin + i]))
            _combine_scaled(mixed[i], dots[mine[i]], beta_u[i], scale, add, row)
    return True
