"""64 float32 values against 64 bits at a time, in LLVM's own vector types.

numba cannot say "the sign bits of 64 values as one word"; LLVM can, and turns it into mask registers (AVX-512),
movmskps (AVX2) or plain shifts, whatever the machine has. Bit j of a word belongs to value j, so words in memory are
``np.packbits(..., bitorder="little")``.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 64
AHEAD = 3072  # values, three pages: how far ahead of its use memory is asked for; hardware alone looks less far
FLOATS = ir.VectorType(ir.FloatType(), LANES)
INTS = ir.VectorType(ir.IntType(32), LANES)
BITS = ir.VectorType(ir.IntType(1), LANES)
BYTES = ir.VectorType(ir.IntType(8), LANES)
WORD = ir.IntType(LANES)


def _address(context, builder, array_type, array, index, vector):
    data = cgutils.create_struct_proxy(array_type)(context, builder, value=array).data
    return builder.bitcast(builder.gep(data, [index]), vector.as_pointer())


def _splat(builder, scalar, vector):
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(one, one, ir.Constant(INTS, [0] * LANES))


@intrinsic
def prefetch(typingctx, x, i):
    """Have ``x[i : i + 64]``, float32, brought into the cache; i may be past the end."""

    def codegen(context, builder, signature, args):
        byte, flag = ir.IntType(8), ir.IntType(32)
        start = builder.bitcast(_address(context, builder, signature.args[0], *args, FLOATS), byte.as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [start.type, flag, flag, flag])
        ask = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        for line in range(0, 4 * LANES, 64):
            place = builder.gep(start, [ir.Constant(ir.IntType(64), line)])
            builder.call(ask, [place, flag(0), flag(3), flag(1)])  # to read, into the first level, data
        return context.get_dummy_value()

    return types.void(x, i), codegen


@intrinsic
def negative(typingctx, x, i):
    """The word whose bit j says whether ``x[i + j] < 0``; x is float32."""

    def codegen(context, builder, signature, args):
        values = builder.load(_address(context, builder, signature.args[0], *args, FLOATS), align=4)
        return builder.bitcast(builder.fcmp_ordered("<", values, ir.Constant(FLOATS, [0.0] * LANES)), WORD)

    return types.uint64(x, i), codegen


@intrinsic
def at_least(typingctx, bits, i, threshold):
    """The word whose bit j says whether the magnitude of a float32 with these int32 bits at i + j is at least the
    threshold's.
    """

    def codegen(context, builder, signature, args):
        array, index, least = args
        values = builder.load(_address(context, builder, signature.args[0], array, index, INTS), align=4)
        return builder.bitcast(
            builder.icmp_signed(">=", _magnitudes(builder, values), _splat(builder, least, INTS)), WORD
        )

    return types.uint64(bits, i, types.int32), codegen


@intrinsic
def negative_and_sum(typingctx, x, i, sums):
    """As ``negative``, and adds ``|x[i + j]|`` to ``sums[j]``, float32, (64,)."""

    def codegen(context, builder, signature, args):
        array, index, totals = args
        values = builder.load(_address(context, builder, signature.args[0], array, index, FLOATS), align=4)
        return _negative_and_sum(context, builder, values, signature.args[2], totals)

    return types.uint64(x, i, sums), codegen


@intrinsic
def add_negative_and_sum(typingctx, x, owed, i, sums):
    """``owed[i + j] += x[i + j]`` for 64 values, then as ``negative_and_sum`` of owed."""

    def codegen(context, builder, signature, args):
        array, target, index, totals = args
        address = _address(context, builder, signature.args[1], target, index, FLOATS)
        fresh = builder.load(_address(context, builder, signature.args[0], array, index, FLOATS), align=4)
        values = builder.fadd(builder.load(address, align=4), fresh)
        builder.store(values, address, align=4)
        return _negative_and_sum(context, builder, values, signature.args[3], totals)

    return types.uint64(x, owed, i, sums), codegen


def _negative_and_sum(context, builder, values, sums_type, sums):
    start = ir.Constant(ir.IntType(64), 0)
    address = _address(context, builder, sums_type, sums, start, FLOATS)
    magnitudes = builder.bitcast(_magnitudes(builder, values), FLOATS)
    builder.store(builder.fadd(builder.load(address, align=4), magnitudes), address, align=4)
    return builder.bitcast(builder.fcmp_ordered("<", values, ir.Constant(FLOATS, [0.0] * LANES)), WORD)


def _part(context, builder, array_type, array, index, count):
    """Load values i to i + count - 1, count <= 64, and 0 for the others; the memory behind them is not touched."""
    address = _address(context, builder, array_type, array, index, FLOATS)
    inside = builder.icmp_signed("<", ir.Constant(INTS, list(range(LANES))), _splat(builder, count, INTS))
    kind = ir.FunctionType(FLOATS, [address.type, ir.IntType(32), BITS, FLOATS])
    load = cgutils.get_or_insert_function(builder.module, kind, f"llvm.masked.load.v{LANES}f32.p0")
    return builder.call(load, [address, ir.IntType(32)(4), inside, ir.Constant(FLOATS, [0.0] * LANES)])


def _magnitudes(builder, values):
    return builder.and_(builder.bitcast(values, INTS), ir.Constant(INTS, [0x7FFFFFFF] * LANES))


@intrinsic
def largest(typingctx, x, i, count):
    """The largest magnitude among ``x[i : i + count]``, count <= 64, as bits; the memory behind is not touched."""

    def codegen(context, builder, signature, args):
        values = _part(context, builder, signature.args[0], *args)
        kind = ir.FunctionType(ir.IntType(32), [INTS])
        reduce = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.smax.v{LANES}i32")
        return builder.call(reduce, [_magnitudes(builder, values)])

    return types.int32(x, i, types.int32), codegen


@intrinsic
def reaching(typingctx, x, owed, i, count, reach, threshold):
    """Two words for the values i + j, j < count <= 64: which owed values are not 0 and have ``|owed + reach x|`` of
    at least the threshold (> 0, as bits), and which owed values are below 0."""

    def codegen(context, builder, signature, args):
        fresh = _part(context, builder, signature.args[0], args[0], args[2], args[3])
        held = _part(context, builder, signature.args[1], args[1], args[2], args[3])
        reached = builder.fadd(held, builder.fmul(_splat(builder, args[4], FLOATS), fresh))
        above = builder.icmp_signed(">=", _magnitudes(builder, reached), _splat(builder, args[5], INTS))
        zero = ir.Constant(FLOATS, [0.0] * LANES)
        chosen = builder.and_(above, builder.fcmp_unordered("!=", held, zero))
        pair = [builder.bitcast(bits, WORD) for bits in (chosen, builder.fcmp_ordered("<", held, zero))]
        return context.make_tuple(builder, signature.return_type, pair)

    return types.UniTuple(types.uint64, 2)(x, owed, i, types.int32, types.float32, types.int32), codegen


@intrinsic
def places(typingctx, word, minus, base, out, i):
    """For every set bit j of word, in order, put ``base + j`` into out from i on, with the top bit of an entry set if
    bit j of minus is.

    out is uint8 or uint16, base a multiple of 64. Whatever word is, ``out[i : i + 64]`` is written; what is behind
    the last place has no meaning.
    """

    def codegen(context, builder, signature, args):
        entry = ir.IntType(signature.args[3].dtype.bitwidth)
        entries = ir.VectorType(entry, LANES)
        lanes, signed = (ir.Constant(BYTES, [bit + j for j in range(LANES)]) for bit in (0, 128))
        codes = builder.select(builder.bitcast(args[1], BITS), signed, lanes)
        kind = ir.FunctionType(BYTES, [BYTES, BITS, BYTES])
        name = f"llvm.experimental.vector.compress.v{LANES}i8"
        compress = cgutils.get_or_insert_function(builder.module, kind, name)
        codes = builder.call(compress, [codes, builder.bitcast(args[0], BITS), ir.Constant(BYTES, ir.Undefined)])
        if entry.width > 8:  # LLVM 22's code for compressing 64 entries of 16 bits crashes
            twice = builder.mul(builder.zext(codes, entries), ir.Constant(entries, [0x101] * LANES))
            codes = builder.and_(twice, ir.Constant(entries, [0x803F] * LANES))
        codes = builder.add(codes, _splat(builder, builder.trunc(args[2], entry), entries))
        address = _address(context, builder, signature.args[3], args[3], args[4], entries)
        builder.store(codes, address, align=entry.width // 8)
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64, types.int64, out, i), codegen


@intrinsic
def step_down(typingctx, word, step, out, i):
    """Where a bit of word is set, subtract step with the sign of ``out[i + j]`` from it."""

    def codegen(context, builder, signature, args):
        bits, size, array, index = args
        address = _address(context, builder, signature.args[2], array, index, FLOATS)
        values, plus = builder.load(address, align=4), _splat(builder, size, FLOATS)
        below = builder.fcmp_ordered("<", values, ir.Constant(FLOATS, [0.0] * LANES))
        moved = builder.fsub(values, builder.select(below, builder.fneg(plus), plus))
        builder.store(builder.select(builder.bitcast(bits, BITS), moved, values), address, align=4)
        return context.get_dummy_value()

    return types.void(types.uint64, types.float32, out, i), codegen


@intrinsic
def signed(typingctx, word, scale, out, i):
    """Store ``-scale`` where a bit of word is set and ``scale`` elsewhere in ``out[i : i + 64]``."""

    def codegen(context, builder, signature, args):
        bits, magnitude, array, index = args
        plus = _splat(builder, magnitude, FLOATS)
        values = builder.select(builder.bitcast(bits, BITS), builder.fneg(plus), plus)
        builder.store(values, _address(context, builder, signature.args[2], array, index, FLOATS), align=4)
        return context.get_dummy_value()

    return types.void(types.uint64, types.float32, out, i), codegen


@intrinsic
def add_signed(typingctx, word, scale, out, i):
    """Add ``-scale`` where a bit of word is set and ``scale`` elsewhere to ``out[i : i + 64]``."""

    def codegen(context, builder, signature, args):
        bits, magnitude, array, index = args
        address = _address(context, builder, signature.args[2], array, index, FLOATS)
        plus = _splat(builder, magnitude, FLOATS)
        terms = builder.select(builder.bitcast(bits, BITS), builder.fneg(plus), plus)
        builder.store(builder.fadd(builder.load(address, align=4), terms), address, align=4)
        return context.get_dummy_value()

    return types.void(types.uint64, types.float32, out, i), codegen


@intrinsic
def keep_and_add_signed(typingctx, word, scale, keep, out, i):
    """Multiply ``out[i : i + 64]`` by keep, then as ``add_signed``; two roundings, as if done one after the other."""

    def codegen(context, builder, signature, args):
        bits, magnitude, factor, array, index = args
        address = _address(context, builder, signature.args[3], array, index, FLOATS)
        plus = _splat(builder, magnitude, FLOATS)
        terms = builder.select(builder.bitcast(bits, BITS), builder.fneg(plus), plus)
        kept = builder.fmul(builder.load(address, align=4), _splat(builder, factor, FLOATS))
        builder.store(builder.fadd(kept, terms), address, align=4)
        return context.get_dummy_value()

    return types.void(types.uint64, types.float32, types.float32, out, i), codegen


@intrinsic
def trailing_zeros(typingctx, word):
    """The place of the lowest set bit of a non-zero uint64."""

    def codegen(context, builder, signature, args):
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), codegen


@intrinsic
def population(typingctx, word):
    """How many bits of a uint64 are set."""

    def codegen(context, builder, signature, args):
        return builder.ctpop(args[0])

    return types.int64(types.uint64), codegen
