"""Values on a grid: float32 rounded to multiples of a step, and their integers in as many bits as they need.

Payload of n integers, version 1: for each block of 64 (the last is filled up with zeros) one byte, its width: the bits
of its largest, sign included. That is padded to a multiple of 8 bytes. Then 64 streams of 32-bit words, low bits first,
word by word side by side; the j-th integers of all blocks follow each other in stream j, with their signs as the lowest
bit (``kernels.lanes``). So a block is packed by one shift, and a block of zeros costs its byte.
"""

import numpy as np
from numba import njit

from hpcopt.kernels import lanes

BLOCK = 64  # as there are lanes


@njit(inline="always")
def _head(blocks):
    """The 32-bit words that the widths of so many blocks take."""
    return (blocks + 7) // 8 * 2


@njit(inline="always")
def _put(block, width, row, offset, words):
    """Append a block to the streams, filled up to bit ``offset`` of their word ``row``; give the new place."""
    if width == 0:
        return row, offset
    if offset == 0:
        lanes.begin(block, 0, words, row * BLOCK)
    else:
        lanes.join(block, offset, words, row * BLOCK)
    offset += width
    if offset < 32:
        return row, offset
    if offset > 32:
        lanes.begin(block, 32 - (offset - width), words, (row + 1) * BLOCK)
    return row + 1, offset - 32


@njit(inline="always")
def _get(words, width, row, offset, block):
    """Fill block, of which the low ``width`` bits count, with the next one; give the place after it."""
    lanes.begin(words[row * BLOCK :], offset, block, 0)
    offset += width
    if offset < 32:
        return row, offset
    if offset > 32:
        lanes.join(words[(row + 1) * BLOCK :], 32 - (offset - width), block, 0)
    return row + 1, offset - 32


@njit(nogil=True, cache=True)
def encode(x, per_step, payload):
    """Pack x, float32, (n,), in steps: the nearest integers to ``x per_step``, of magnitudes below 2^31. Gives the
    bytes used of payload, uint8.
    """
    blocks = (x.size + BLOCK - 1) // BLOCK
    words, block, rest = payload.view(np.uint32)[_head(blocks) :], np.empty(BLOCK, np.uint32), np.zeros(BLOCK, x.dtype)
    rest[: x.size % BLOCK] = x[x.size - x.size % BLOCK :]
    payload[blocks : 4 * _head(blocks)] = 0
    row, offset = 0, 0
    for b in range(blocks):
        if (b + 1) * BLOCK <= x.size:
            width = lanes.width(lanes.nearest(x, b * BLOCK, per_step, block))
        else:
            width = lanes.width(lanes.nearest(rest, 0, per_step, block))
        payload[b] = np.uint8(width)
        row, offset = _put(block, width, row, offset, words)
    return 4 * (_head(blocks) + BLOCK * (row + (offset > 0)))


@njit(nogil=True, cache=True)
def quantise(x, per_step):
    """The integers nearest to ``x per_step``, int32, with zeros up to whole blocks."""
    integers = np.zeros((x.size + BLOCK - 1) // BLOCK * BLOCK, np.int32)
    for i in range(x.size):
        integers[i] = np.int32(np.rint(np.float64(x[i]) * per_step))
    return integers


@njit(nogil=True, cache=True)
def pack(integers, n, payload):
    """As ``encode``, of n int32 integers, which are followed by zeros up to whole blocks."""
    blocks = (n + BLOCK - 1) // BLOCK
    words, block = payload.view(np.uint32)[_head(blocks) :], np.empty(BLOCK, np.uint32)
    payload[blocks : 4 * _head(blocks)] = 0
    row, offset = 0, 0
    for b in range(blocks):
        width = lanes.width(lanes.sign_last(integers, b * BLOCK, block))
        payload[b] = np.uint8(width)
        row, offset = _put(block, width, row, offset, words)
    return 4 * (_head(blocks) + BLOCK * (row + (offset > 0)))


@njit(nogil=True, cache=True)
def payload_bytes(payload, n):
    """The bytes that a payload of n integers says that it has; -1 if it is none."""
    blocks, bits = (n + BLOCK - 1) // BLOCK, np.int64(0)
    if payload.size < blocks:
        return -1
    for b in range(blocks):
        if payload[b] > 32:
            return -1
        bits += np.int64(payload[b])
    return 4 * (_head(blocks) + BLOCK * ((bits + 31) // 32))


@njit(nogil=True, cache=True)
def add(payload, integers):
    """Add a whole payload's to int32 integers, whole blocks of them."""
    blocks, block = integers.size // BLOCK, np.empty(BLOCK, np.uint32)
    words = payload.view(np.uint32)[_head(blocks) :]
    row, offset = 0, 0
    for b in range(blocks):
        width = np.int64(payload[b])
        if width > 0:
            row, offset = _get(words, width, row, offset, block)
            lanes.add_integers(block, width, integers, b * BLOCK)


@njit(nogil=True, cache=True)
def decode(payload, step, out):
    """Fill out, float32, (n,), with a whole payload's integers times step."""
    blocks, block = (out.size + BLOCK - 1) // BLOCK, np.empty(BLOCK, np.uint32)
    words, rest = payload.view(np.uint32)[_head(blocks) :], np.zeros(BLOCK, out.dtype)
    row, offset = 0, 0
    for b in range(blocks):
        width, begin = np.int64(payload[b]), b * BLOCK
        if width > 0:
            row, offset = _get(words, width, row, offset, block)
        if begin + BLOCK > out.size:
            if width > 0:
                lanes.store_values(block, width, step, rest, 0)
            out[begin:] = rest[: out.size - begin]
        elif width > 0:
            lanes.store_values(block, width, step, out, begin)
        else:
            out[begin : begin + BLOCK] = 0
