"""float32 to bfloat16 in one sweep: to the nearest, ties to even, as torch does, but what is finite stays finite."""

import numpy as np
from numba import njit

from hpcopt.kernels.rng import shift_right

MAGNITUDE, INF = np.uint32(0x7FFFFFFF), np.uint32(0x7F800000)
TOP = np.uint32(0x7F7F0000)  # the largest finite bfloat16, as float32


@njit(nogil=True, cache=True)
def bfloat16(bits, halves):
    """Fill halves, uint16, (n,), with the values of which bits, uint32, (n,), are the bits."""
    for j in range(bits.size):
        value = bits[j]
        magnitude = np.uint32(value & MAGNITUDE)
        if magnitude > TOP and magnitude < INF:
            value = np.uint32(np.uint32(value ^ magnitude) | TOP)
        odd = np.uint32(shift_right(value, np.uint32(16)) & np.uint32(1))
        rounded = shift_right(np.uint32(value + np.uint32(np.uint32(0x7FFF) + odd)), np.uint32(16))
        nan = np.uint32(shift_right(value, np.uint32(16)) | np.uint32(0x40))
        halves[j] = np.uint16(nan if magnitude > INF else rounded)
