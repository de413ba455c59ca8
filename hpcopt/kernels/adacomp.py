"""AdaComp's selection in one sweep: residue, bin maxima and the values that come within reach of them."""

import numpy as np
from numba import njit

from hpcopt.kernels import masks
from hpcopt.kernels.qsgd import MAGNITUDE

LANES = masks.LANES


@njit(nogil=True, cache=True)
def _accumulate(fresh, residue, reach, reached):
    """residue += fresh; reached = residue + reach * fresh; return the bits of the largest |residue|."""
    for j in range(fresh.size):
        residue[j] += fresh[j]
        reached[j] = residue[j] + reach * fresh[j]
    top = np.int32(0)
    bits = residue.view(np.int32)
    for j in range(fresh.size):
        top = max(top, np.int32(bits[j] & MAGNITUDE))
    return top


@njit(nogil=True, cache=True)
def encode(x, residue, bin_size, reach, minus, counts, entries):
    """Fill counts (one a bin) and entries (offset in the bin, with the bit ``minus`` for a negative residue).

    residue becomes G = residue + x. An entry j is sent if ``|G_j + reach x_j| >= max |G|`` over its bin and G_j is
    not 0. Returns the number of entries, S (the mean over bins of max |G|, float32) and the bits of the largest
    magnitude.
    """
    reached = np.zeros((bin_size + LANES - 1) // LANES * LANES, np.float32)
    bits = reached.view(np.int32)
    done, worst, total = 0, np.int32(0), 0.0
    for b in range(counts.size):
        stretch = residue[b * bin_size : (b + 1) * bin_size]
        if stretch.size < bin_size:
            reached[:] = 0
        top = _accumulate(x[b * bin_size : (b + 1) * bin_size], stretch, reach, reached)
        worst = max(worst, top)
        total += np.float64(np.int32(top).view(np.float32))
        before = done
        if top > 0:
            for k in range(0, stretch.size, LANES):
                word = masks.at_least(bits, k, top)
                while word != 0:
                    j = k + masks.trailing_zeros(word)
                    word &= word - np.uint64(1)
                    if stretch[j] != 0:
                        entries[done] = j | minus if stretch[j] < 0 else j
                        done += 1
        counts[b] = done - before
    scale = np.float32(total / counts.size) if counts.size > 0 else np.float32(0)
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
