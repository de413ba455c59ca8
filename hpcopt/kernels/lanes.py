"""Blocks of 64 integers against 64 lanes of 32-bit words, in LLVM's own vector types.

An integer with its sign last is ``2 q`` for q >= 0 and ``-2 q - 1`` below: small magnitudes have few bits. Rounding is
done in float64: adding ``1.5 * 2^52`` leaves the nearest integer (ties to even) in the low bits, for magnitudes below
2^31.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from hpcopt.kernels.masks import FLOATS, INTS, LANES, _address, _splat

DOUBLES = ir.VectorType(ir.DoubleType(), LANES)
LONGS = ir.VectorType(ir.IntType(64), LANES)
ROUND = 1.5 * 2.0**52


def _all(number):
    return ir.Constant(INTS, [number] * LANES)


def _first(context, builder, array_type, array):
    return _address(context, builder, array_type, array, ir.Constant(ir.IntType(64), 0), INTS)


def _sign_last(context, builder, integers, out_type, out):
    """Store integers with their signs last; give all their bits."""
    signed = builder.xor(builder.shl(integers, _all(1)), builder.ashr(integers, _all(31)))
    builder.store(signed, _first(context, builder, out_type, out), align=4)
    kind = ir.FunctionType(ir.IntType(32), [INTS])
    every = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.or.v{LANES}i32")
    return builder.call(every, [signed])


@intrinsic
def nearest(typingctx, x, i, per_step, out):
    """Fill out, uint32, (64,), with the integers nearest to ``x[i + j] * per_step``, signs last; give all their bits in
    one word.
    """

    def codegen(context, builder, signature, args):
        array, index, factor, target = args
        values = builder.load(_address(context, builder, signature.args[0], array, index, FLOATS), align=4)
        scaled = builder.fmul(builder.fpext(values, DOUBLES), _splat(builder, factor, DOUBLES))
        rounded = builder.fadd(scaled, ir.Constant(DOUBLES, [ROUND] * LANES))
        integers = builder.trunc(builder.bitcast(rounded, LONGS), INTS)
        return _sign_last(context, builder, integers, signature.args[3], target)

    return types.uint32(x, i, types.float64, out), codegen


@intrinsic
def sign_last(typingctx, integers, i, out):
    """Fill out, uint32, (64,), with ``integers[i + j]``, int32, signs last; give all their bits in one word."""

    def codegen(context, builder, signature, args):
        array, index, target = args
        values = builder.load(_address(context, builder, signature.args[0], array, index, INTS), align=4)
        return _sign_last(context, builder, values, signature.args[2], target)

    return types.uint32(integers, i, out), codegen


@intrinsic
def width(typingctx, word):
    """The place of the highest set bit of a uint32, from 1; 0 of 0."""

    def codegen(context, builder, signature, args):
        zeros = builder.ctlz(args[0], ir.Constant(ir.IntType(1), 0))
        return builder.zext(builder.sub(ir.IntType(32)(32), zeros), ir.IntType(64))

    return types.int64(types.uint32), codegen


@intrinsic
def begin(typingctx, block, shift, words, i):
    """``words[i + j] = block[j] >> shift``, uint32, 0 <= shift < 32."""

    def codegen(context, builder, signature, args):
        source, count, target, index = args
        values = builder.load(_first(context, builder, signature.args[0], source), align=4)
        values = builder.lshr(values, _splat(builder, builder.trunc(count, ir.IntType(32)), INTS))
        builder.store(values, _address(context, builder, signature.args[2], target, index, INTS), align=4)
        return context.get_dummy_value()

    return types.void(block, types.int64, words, i), codegen


@intrinsic
def join(typingctx, block, shift, words, i):
    """``words[i + j] |= block[j] << shift``, uint32, 0 <= shift < 32."""

    def codegen(context, builder, signature, args):
        source, count, target, index = args
        values = builder.load(_first(context, builder, signature.args[0], source), align=4)
        values = builder.shl(values, _splat(builder, builder.trunc(count, ir.IntType(32)), INTS))
        address = _address(context, builder, signature.args[2], target, index, INTS)
        builder.store(builder.or_(builder.load(address, align=4), values), address, align=4)
        return context.get_dummy_value()

    return types.void(block, types.int64, words, i), codegen


def _integers(builder, context, block_type, block, width):
    """Of a block's low ``width`` bits, 1 <= width <= 32, whose sign is the last."""
    unused = builder.sub(ir.IntType(32)(32), builder.trunc(width, ir.IntType(32)))
    ones = builder.lshr(ir.IntType(32)(0xFFFFFFFF), unused)
    signed = builder.load(_first(context, builder, block_type, block), align=4)
    signed = builder.and_(signed, _splat(builder, ones, INTS))
    return builder.xor(builder.lshr(signed, _all(1)), builder.neg(builder.and_(signed, _all(1))))


@intrinsic
def add_integers(typingctx, block, width, out, i):
    """Add a block's integers of ``width`` bits to ``out[i + j]``, int32."""

    def codegen(context, builder, signature, args):
        source, bits, target, index = args
        address = _address(context, builder, signature.args[2], target, index, INTS)
        integers = _integers(builder, context, signature.args[0], source, bits)
        builder.store(builder.add(builder.load(address, align=4), integers), address, align=4)
        return context.get_dummy_value()

    return types.void(block, types.int64, out, i), codegen


@intrinsic
def store_values(typingctx, block, width, step, out, i):
    """``out[i + j]``, float32, becomes a block's integers of ``width`` bits times step, rounded once."""

    def codegen(context, builder, signature, args):
        source, bits, step, target, index = args
        doubles = builder.sitofp(_integers(builder, context, signature.args[0], source, bits), DOUBLES)
        values = builder.fptrunc(builder.fmul(doubles, _splat(builder, step, DOUBLES)), FLOATS)
        builder.store(values, _address(context, builder, signature.args[3], target, index, FLOATS), align=4)
        return context.get_dummy_value()

    return types.void(block, types.int64, types.float64, out, i), codegen
