"""AdaComp in two sweeps of memory: one for residue, bin maxima and the values that come within reach of them, one that
takes what is sent out of the residue.

Which values are sent does not depend on S, so the first sweep decides it; S is known at its end.
"""

import numpy as np
from numba import njit

from hpcopt.kernels import masks

LANES = masks.LANES
GROUP = 16  # words of a stretch that stays in the first-level cache: each step runs over all of it before the next


@njit(nogil=True, cache=True)
def add_in_place(total, term):
    """``total += term``."""
    for j in range(total.size):
        total[j] += term[j]


@njit(nogil=True, cache=True)
def encode(x, residue, bin_size, reach, counts, entries, sent):
    """Fill counts (one a bin), entries (offset in the bin, with the top bit for a negative residue) and sent.

    residue becomes G = residue + x. An entry j is sent if ``|G_j + reach x_j| >= max |G|`` over its bin and G_j is
    not 0. sent, uint64, ceil(n / 64) + 1 words of 0, gets bit j of word k if value 64 k + j is. Returns the number of
    entries, S (the mean over bins of max |G|, float32) and the bits of the largest magnitude.
    """
    group = max(1, GROUP // ((bin_size + LANES - 1) // LANES))
    tops, spill = np.zeros(group, np.int32), np.empty(LANES, entries.dtype)
    done, worst, total = 0, np.int32(0), 0.0
    for start in range(0, counts.size, group):
        stop = min(start + group, counts.size)
        add_in_place(residue[start * bin_size : stop * bin_size], x[start * bin_size : stop * bin_size])
        for b in range(start, stop):
            end = min((b + 1) * bin_size, x.size)
            top = np.int32(0)
            for i in range(b * bin_size, end, LANES):
                masks.prefetch(x, i + masks.AHEAD)
                top = max(top, masks.largest(residue, i, np.int32(min(end - i, LANES))))
            tops[b - start] = top
            worst = max(worst, top)
            total += np.float64(np.int32(top).view(np.float32))
        for b in range(start, stop):
            begin, end, before = b * bin_size, min((b + 1) * bin_size, x.size), done
            for i in range(begin, end, LANES):
                masks.prefetch(residue, i + masks.AHEAD)
                count = np.int32(min(end - i, LANES))
                word, negative = masks.reaching(x, residue, i, count, reach, tops[b - start])
                _mark(word, i, sent)
                number = masks.population(word)
                if done + LANES <= entries.size:
                    masks.places(word, negative, i - begin, entries, done)
                else:  # 64 entries would run over the end
                    masks.places(word, negative, i - begin, spill, 0)
                    entries[done : done + number] = spill[:number]
                done += number
            counts[b] = done - before
    scale = np.float32(total / counts.size) if counts.size > 0 else np.float32(0)
    return done, scale, worst


@njit(inline="always")
def _mark(word, i, sent):
    """Set the bits of a word, which belongs to the values from i on, in sent."""
    k, shift = i // LANES, np.uint64(i % LANES)
    sent[k] |= word << shift
    sent[k + 1] |= (word >> np.uint64(1)) >> (np.uint64(LANES - 1) - shift)


@njit(nogil=True, cache=True)
def settle(sent, scale, residue):
    """Subtract +-scale, with the residue's own sign, where a bit of sent is set."""
    whole = residue.size // LANES
    for k in range(whole):
        masks.step_down(sent[k], scale, residue, k * LANES)
    for i in range(whole * LANES, residue.size):
        if sent[whole] >> np.uint64(i - whole * LANES) & np.uint64(1):
            residue[i] -= scale if residue[i] > 0 else -scale


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
