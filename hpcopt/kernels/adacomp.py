"""AdaComp's selection in one sweep: residue, bin maxima and the values that come within reach of them."""

import numpy as np
from numba import njit

from hpcopt.kernels import masks

LANES = masks.LANES
STRETCH = 1024  # values that stay in the first-level cache, unless a bin is longer


@njit(nogil=True, cache=True)
def _accumulate(fresh, residue, reach, total, reached):
    """residue += fresh, of which total is a copy; reached = residue + reach * fresh."""
    for j in range(fresh.size):
        value = residue[j] + fresh[j]
        residue[j] = value
        total[j] = value
        reached[j] = value + reach * fresh[j]


@njit(nogil=True, cache=True)
def encode(x, residue, bin_size, reach, minus, counts, entries):
    """Fill counts (one a bin) and entries (offset in the bin, with the bit ``minus`` for a negative residue).

    residue becomes G = residue + x. An entry j is sent if ``|G_j + reach x_j| >= max |G|`` over its bin and G_j is
    not 0. Returns the number of entries, S (the mean over bins of max |G|, float32) and the bits of the largest
    magnitude.
    """
    stretch = max(1, STRETCH // bin_size) * bin_size
    total, reached = np.zeros(stretch + LANES, np.float32), np.zeros(stretch + LANES, np.float32)
    total_bits, reached_bits = total.view(np.int32), reached.view(np.int32)
    done, worst, tops = 0, np.int32(0), 0.0
    for start in range(0, x.size, stretch):
        size = min(stretch, x.size - start)
        _accumulate(x[start : start + size], residue[start : start + size], reach, total, reached)
        for first in range(0, size, bin_size):
            end = min(first + bin_size, size)
            top = np.int32(0)
            for i in range(first, end, LANES):
                top = max(top, masks.largest(total_bits, i, np.int32(end - i)))
            worst = max(worst, top)
            tops += np.float64(np.int32(top).view(np.float32))
            before = done
            for i in range(first, end if top > 0 else first, LANES):
                word = masks.at_least(reached_bits, i, top)
                if end - i < LANES:
                    word &= (np.uint64(1) << np.uint64(end - i)) - np.uint64(1)
                while word != 0:
                    j = i + masks.trailing_zeros(word)
                    word &= word - np.uint64(1)
                    if total[j] != 0:
                        entries[done] = (j - first) | minus if total[j] < 0 else j - first
                        done += 1
            counts[(start + first) // bin_size] = done - before
    scale = np.float32(tops / counts.size) if counts.size > 0 else np.float32(0)
    return done, scale, worst


@njit(nogil=True, cache=True)
def add(counts, entries, scale, bin_size, minus, out):
    """Add +-scale to out at every entry; False if the entries do not fit out."""
    done = 0
    for b in range(counts.size):
        if done + counts[b] > entries.size:
            return False
        for entry in entries[done : done + counts[b]]:
            i = b * bin_size + (entry & (minus - 1))
            if i >= out.size:
                return False
            out[i] += -scale if entry & minus else scale
        done += counts[b]
    return True
