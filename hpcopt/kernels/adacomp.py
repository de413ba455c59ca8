"""AdaComp's selection in one sweep: residue, bin maxima and the values that come within reach of them."""

import numpy as np
from numba import njit

from hpcopt.kernels import masks

LANES = masks.LANES
GROUP = 32  # words of a stretch that stays in the first-level cache: each step runs over all of it before the next


@njit(nogil=True, cache=True)
def add_in_place(total, term):
    """``total += term``."""
    for j in range(total.size):
        total[j] += term[j]


@njit(nogil=True, cache=True)
def encode(x, residue, bin_size, reach, minus, counts, entries):
    """Fill counts (one a bin) and entries (offset in the bin, with the bit ``minus`` for a negative residue).

    residue becomes G = residue + x. An entry j is sent if ``|G_j + reach x_j| >= max |G|`` over its bin and G_j is
    not 0. Returns the number of entries, S (the mean over bins of max |G|, float32) and the bits of the largest
    magnitude.
    """
    pieces = (bin_size + LANES - 1) // LANES
    group = max(1, GROUP // pieces)
    tops = np.zeros(group, np.int32)
    chosen, below = np.zeros(group * pieces, np.uint64), np.zeros(group * pieces, np.uint64)
    done, worst, total = 0, np.int32(0), 0.0
    for start in range(0, counts.size, group):
        stop = min(start + group, counts.size)
        add_in_place(residue[start * bin_size : stop * bin_size], x[start * bin_size : stop * bin_size])
        for b in range(start, stop):
            end = min((b + 1) * bin_size, x.size)
            top = np.int32(0)
            for i in range(b * bin_size, end, LANES):
                top = max(top, masks.largest(residue, i, np.int32(min(end - i, LANES))))
            tops[b - start] = top
            worst = max(worst, top)
            total += np.float64(np.int32(top).view(np.float32))
        for b in range(start, stop):
            end, k = min((b + 1) * bin_size, x.size), (b - start) * pieces
            for i in range(b * bin_size, end, LANES):
                count = np.int32(min(end - i, LANES))
                chosen[k], below[k] = masks.reaching(x, residue, i, count, reach, tops[b - start])
                k += 1
        for b in range(start, stop):
            before = done
            for piece in range(pieces):
                k = (b - start) * pieces + piece
                word, negative = chosen[k], below[k]
                chosen[k] = 0  # a short last bin has fewer pieces
                while word != 0:
                    j = masks.trailing_zeros(word)
                    word &= word - np.uint64(1)
                    sign = np.int64(
                        negative >> np.uint64(j) & np.uint64(1)
                    )  # a branch would be guessed wrong half the time
                    entries[done] = (piece * LANES + j) | minus * sign
                    done += 1
            counts[b] = done - before
    scale = np.float32(total / counts.size) if counts.size > 0 else np.float32(0)
    return done, scale, worst


@njit(nogil=True, cache=True)
def add(counts, entries, scale, bin_size, minus, out):
    """Add +-scale to out at every entry; False if the entries do not fit out."""
    done = np.int64(0)
    for b in range(counts.size):
        end = done + np.int64(counts[b])
        if end > entries.size:
            return False
        for e in range(done, end):
            entry = np.int64(entries[e])
            i = b * bin_size + (entry & (minus - 1))
            if i >= out.size:
                return False
            out[i] += scale * np.float32(1 - 2 * np.int64((entry & minus) != 0))
        done = end
    return True
