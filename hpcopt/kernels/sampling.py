"""Random choices of coordinates, one in each of k equal stretches: distinct by construction, at no cost for sorting."""

import numpy as np
from numba import njit

from hpcopt.kernels import rng


@njit(nogil=True, cache=True)
def one_in_each(n, k, seed, first, indices):
    """Fill indices, int64, (k,), with different places, each of the n with probability k / n.

    The tensor, bent into a ring and turned by a random shift, is cut at ``floor(j n / k)``. Without the turn, places
    in the longer stretches would be drawn less often where k does not divide n.
    """
    low, high = rng.words(seed)
    shift = np.int64(rng.uniform(first + k, low, high) * n)
    for j in range(k):
        begin, end = j * n // k, (j + 1) * n // k
        place = begin + np.int64(rng.uniform(first + j, low, high) * (end - begin)) + shift
        indices[j] = place - n if place >= n else place


@njit(nogil=True, cache=True)
def by_magnitude(x, bucket, seed, first, offsets, values):
    """For each bucket one place, drawn with probability |x_i| / sum |x|: its offset (uint32) and the value there; 0
    and 0 for a zero bucket.
    """
    low, high = rng.words(seed)
    for b in range(offsets.size):
        stretch = x[b * bucket : (b + 1) * bucket]
        total = 0.0
        for value in stretch:
            total += np.float64(abs(value))
        dice = rng.uniform(first // bucket + b, low, high) * total
        chosen, passed = 0, 0.0
        for i in range(stretch.size):
            if stretch[i] != 0:
                chosen = i
                passed += np.float64(abs(stretch[i]))
                if passed > dice:
                    break
        offsets[b] = chosen
        values[b] = stretch[chosen]
