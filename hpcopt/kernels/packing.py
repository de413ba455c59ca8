"""Small codes into bytes: the layout that all quantising codecs share.

Values are packed in blocks of 512 (the last may be shorter). A code of b bits is cut into fields of 8, 4, 2 or 1
bits, lowest first in that order (7 = 4 + 2 + 1). A block of m codes stores field after field; a field of w bits fills
``L = ceil(m w / 8)`` bytes, and byte j holds the codes j, j + L, j + 2 L, ... from its low bits up. Codes of one byte
so lie L apart, and packing needs no horizontal operation.
"""

from numba import njit, uint8

from hpcopt.kernels.rng import BLOCK

PADDED = BLOCK + 8  # room for the rows of a short last block


@njit(inline="always")
def packed_bytes(count, bits):
    """Bytes that a block of ``count`` codes of ``bits`` bits fills."""
    total = 0
    for width in (8, 4, 2, 1):
        if bits & width:
            total += (count * width + 7) // 8
    return total


@njit(inline="always")
def _merge(codes, lanes, width, out):
    """Fill out with the low ``width`` bits of the rows of codes."""
    for j in range(lanes):
        byte = uint8(0)
        for row in range(8 // width):
            field = uint8(codes[row * lanes + j] & uint8((1 << width) - 1))
            byte |= uint8(field << uint8(width * row))
        out[j] = byte


@njit(inline="always")
def _drop(codes, count, width):
    """Let go of the low ``width`` bits."""
    for j in range(count):
        codes[j] = codes[j] >> uint8(width)


@njit(inline="always")
def _split(packed, lanes, row, width, codes):
    """Append (as new low bits) the field of ``width`` bits that belongs to one row of codes."""
    target = codes[row * lanes : row * lanes + lanes]
    for j in range(lanes):
        field = uint8(uint8(packed[j] >> uint8(width * row)) & uint8((1 << width) - 1))
        target[j] = uint8(uint8(target[j] << uint8(width)) | field)


@njit(inline="always")
def _pack(codes, count, bits, out):
    done = 0
    if bits & 4:
        lanes = (count * 4 + 7) // 8
        _merge(codes, lanes, 4, out)
        done = lanes
        if bits > 4:
            _drop(codes, count, 4)
    if bits & 2:
        lanes = (count * 2 + 7) // 8
        _merge(codes, lanes, 2, out[done:])
        done += lanes
        if bits & 1:
            _drop(codes, count, 2)
    if bits & 1:
        lanes = (count + 7) // 8
        _merge(codes, lanes, 1, out[done:])
        done += lanes
    return done


@njit(nogil=True, cache=True)
def pack(codes, count, bits, out):
    """Pack ``codes[:count]``, uint8, PADDED long, of ``bits`` bits into the head of out; return the bytes used. Uses
    up the codes.
    """
    if bits == 8:
        for j in range(count):
            out[j] = codes[j]
        return count
    if count == BLOCK:  # a number that is known makes loops vectors without a rest
        return _pack(codes, BLOCK, bits, out)
    codes[count : count + 8] = 0
    return _pack(codes, count, bits, out)


@njit(nogil=True, cache=True)
def unpack(packed, count, bits, codes):
    """Turn the bytes that ``pack`` wrote back into ``codes[:count]``; return the bytes read."""
    if bits == 8:
        for j in range(count):
            codes[j] = packed[j]
        return count
    total = packed_bytes(count, bits)
    done = total
    codes[: count + 8] = 0
    if bits & 1:
        lanes = (count + 7) // 8
        done -= lanes
        for row in range(8):
            _split(packed[done : done + lanes], lanes, row, 1, codes)
    if bits & 2:
        lanes = (count * 2 + 7) // 8
        done -= lanes
        field = packed[done : done + lanes]
        _split(field, lanes, 0, 2, codes)
        _split(field, lanes, 1, 2, codes)
        _split(field, lanes, 2, 2, codes)
        _split(field, lanes, 3, 2, codes)
    if bits & 4:
        lanes = (count * 4 + 7) // 8
        field = packed[:lanes]
        _split(field, lanes, 0, 4, codes)
        _split(field, lanes, 1, 4, codes)
    return total
