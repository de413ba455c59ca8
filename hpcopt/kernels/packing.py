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
def _merge(codes, lanes, row, width, out):
    """Put the low ``width`` bits of one row of codes into their place in the bytes of out."""
    source = codes[row * lanes : row * lanes + lanes]
    for j in range(lanes):
        out[j] |= uint8(uint8(source[j] & uint8((1 << width) - 1)) << uint8(width * row))


@njit(inline="always")
def _split(packed, lanes, row, width, codes):
    """Append (as new low bits) the field of ``width`` bits that belongs to one row of codes."""
    target = codes[row * lanes : row * lanes + lanes]
    for j in range(lanes):
        field = uint8(uint8(packed[j] >> uint8(width * row)) & uint8((1 << width) - 1))
        target[j] = uint8(uint8(target[j] << uint8(width)) | field)


@njit(nogil=True, cache=True)
def pack(codes, count, bits, out):
    """Pack ``codes[:count]``, uint8, PADDED long, of ``bits`` bits into the head of out; return the bytes used. Uses
    up the codes.
    """
    if bits == 8:
        for j in range(count):
            out[j] = codes[j]
        return count
    if count < BLOCK:
        codes[count : count + 8] = 0
    done = 0
    if bits & 4:
        lanes = (count * 4 + 7) // 8
        field = out[:lanes]
        low, high = codes[:lanes], codes[lanes : 2 * lanes]
        for j in range(lanes):
            field[j] = uint8(low[j] & uint8(15)) | uint8(high[j] << uint8(4))
        done = lanes
        if bits > 4:
            for j in range(count):
                codes[j] = codes[j] >> uint8(4)
    if bits & 2:
        lanes = (count * 2 + 7) // 8
        field = out[done : done + lanes]
        field[:] = 0
        _merge(codes, lanes, 0, 2, field)
        _merge(codes, lanes, 1, 2, field)
        _merge(codes, lanes, 2, 2, field)
        _merge(codes, lanes, 3, 2, field)
        done += lanes
        if bits & 1:
            for j in range(count):
                codes[j] = codes[j] >> uint8(2)
    if bits & 1:
        lanes = (count + 7) // 8
        field = out[done : done + lanes]
        field[:] = 0
        for row in range(7, -1, -1):
            source = codes[row * lanes : row * lanes + lanes]
            for j in range(lanes):  # by steps of one bit: bytes have no shift by a variable
                field[j] = uint8(uint8(field[j] << uint8(1)) | uint8(source[j] & uint8(1)))
        done += lanes
    return done


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
