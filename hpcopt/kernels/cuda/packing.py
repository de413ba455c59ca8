"""The layout of packed codes (``hpcopt.kernels.packing``), in blocks of 512: a field of w bits of a block of m codes
fills L = ceil(m w / 8) bytes, and byte j holds the codes j, j + L, j + 2 L, ... from its low bits up.

Writing, a program looks up the codes that a byte holds; reading, the bytes that hold a code. So a short last block
takes the way of all others.
"""

import triton
import triton.language as tl

BLOCK = tl.constexpr(512)


@triton.jit
def put(CODES: tl.constexpr, args, base, count, BITS: tl.constexpr, out):
    """Write a block of ``count`` codes of BITS bits: of the values from ``base`` on, as the function CODES gives them.

    ``CODES(k, inside, *args)`` gives int32 codes of the values k where ``inside``; it is called for each field.
    """
    if BITS & 8:
        out = _put_field(CODES, args, base, count, 0, 8, out)
    if BITS & 4:
        out = _put_field(CODES, args, base, count, 0, 4, out)
    if BITS & 2:
        out = _put_field(CODES, args, base, count, BITS // 4 * 4, 2, out)
    if BITS & 1:
        out = _put_field(CODES, args, base, count, BITS // 2 * 2, 1, out)


@triton.jit
def put_all(CODES: tl.constexpr, args, first, count, BITS: tl.constexpr, packed):
    """As ``put``, of ``count`` values in blocks; ``first`` of the whole tensor is the first, a multiple of a block."""
    for i in range(tl.cdiv(count, BLOCK)):
        base = i * BLOCK
        put(CODES, args, base, tl.minimum(count - base, BLOCK), BITS, packed + (first + base) // 8 * BITS)


@triton.jit
def _put_field(CODES: tl.constexpr, args, base, count, SHIFT: tl.constexpr, WIDTH: tl.constexpr, out):
    """Write the WIDTH bits from SHIFT on of each code, a row for each code of a byte; give what comes after them."""
    lanes = (count * WIDTH + 7) // 8
    row = tl.arange(0, 8 // WIDTH)[:, None]
    byte = tl.arange(0, 64 * WIDTH)
    place = row * lanes + byte[None, :]
    inside = (byte[None, :] < lanes) & (place < count)
    codes = CODES(base + place, inside, *args)
    field = ((codes >> SHIFT) & ((1 << WIDTH) - 1)) << (WIDTH * row)
    packed = tl.sum(tl.where(inside, field, 0), 0)
    tl.store(out + byte, packed.to(tl.uint8), mask=byte < lanes)
    return out + lanes


@triton.jit
def get(packed, place, inside, count, BITS: tl.constexpr):
    """The codes at places of a block of ``count`` >= 1 codes of BITS bits, int32."""
    codes = tl.zeros_like(place)
    if BITS & 8:
        codes = tl.load(packed + place, mask=inside, other=0).to(tl.int32)
    if BITS & 4:
        codes, packed = _field(packed, place, inside, count, codes, 0, 4)
    if BITS & 2:
        codes, packed = _field(packed, place, inside, count, codes, BITS // 4 * 4, 2)
    if BITS & 1:
        codes, packed = _field(packed, place, inside, count, codes, BITS // 2 * 2, 1)
    return codes


@triton.jit
def _field(packed, place, inside, count, codes, SHIFT: tl.constexpr, WIDTH: tl.constexpr):
    lanes = (count * WIDTH + 7) // 8
    byte = tl.load(packed + place % lanes, mask=inside, other=0).to(tl.int32)
    field = (byte >> (WIDTH * (place // lanes))) & ((1 << WIDTH) - 1)
    return codes | (field << SHIFT), packed + lanes
