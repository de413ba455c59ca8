"""Graphs in compressed rows: sums over neighbours, and a partition."""

import numpy as np
from numba import njit


@njit(nogil=True, cache=True)
def sum_neighbours(indptr, indices, x, out):
    """``out[i] = sum of x[j]`` over the neighbours j of i, in their order; x is (m, d), out (n, d)."""
    for i in range(out.shape[0]):
        row = out[i]
        row[:] = 0
        for e in range(indptr[i], indptr[i + 1]):
            other = x[indices[e]]
            for c in range(row.shape[0]):
                row[c] += other[c]


@njit(nogil=True, cache=True)
def greedy_parts(indptr, indices, order, parts, passes):
    """The part of each node, (n,): each in turn goes where most neighbours are, times the share of places free there.

    Linear deterministic greedy (Stanton and Kliot 2012), streamed again (Nishimura and Ugander 2013). No part has more
    than ``ceil(n / parts)`` nodes.
    """
    n = order.size
    room = (n + parts - 1) // parts
    of = np.full(n, -1, np.int64)
    size, near = np.zeros(parts, np.int64), np.zeros(parts, np.int64)
    emptiest = 0
    for _ in range(passes):
        for i in order:
            if of[i] >= 0:
                size[of[i]] -= 1
                if size[of[i]] < size[emptiest]:
                    emptiest = of[i]
            best, most = -1, 0.0
            for e in range(indptr[i], indptr[i + 1]):
                part = of[indices[e]]
                if part >= 0:
                    near[part] += 1
            for e in range(indptr[i], indptr[i + 1]):
                part = of[indices[e]]
                if part >= 0 and near[part] > 0:
                    score = near[part] * (1.0 - size[part] / room)
                    if score > most:
                        best, most = part, score
                    near[part] = 0
            if best < 0:
                for part in range(parts):
                    if size[part] < size[emptiest]:
                        emptiest = part
                best = emptiest
            of[i] = best
            size[best] += 1
    return of
