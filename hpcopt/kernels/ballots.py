"""Counting votes on packed signs: 64 elections at a time in each word.

A set bit votes minus. **The rule, the same everywhere**: the outcome is minus if more than half of the votes (or of
their weight) are minus, else plus; so a tie is plus, and so are zeros of either sign and NaN, which ``bits.pack`` (x
< 0) makes plus votes.

Counts are bit-sliced: plane b holds bit b of every election's count of minus votes. Counts of groups may be added
(``add_counts``) and the sum compared once (``exceeds``), so a vote in two levels is exactly the flat vote; a vote of
votes would not be.
"""

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from hpcopt.kernels.masks import population

WIDE = 8  # words that an adder tree handles at once
FUSED_VOTERS = 16  # up to here the adder tree is unrolled
STRETCH = 64  # words that the generic counter keeps in the first-level cache


def _adder_tree(builder, votes):
    """The planes of the count of the given vote words, least significant first, by full and half adders."""
    planes, column = [], list(votes)
    while column:
        carries = []
        while len(column) > 1:
            a, b = column.pop(0), column.pop(0)
            odd = builder.xor(a, b)
            carry = builder.and_(a, b)
            if column:
                c = column.pop(0)
                carry = builder.or_(carry, builder.and_(odd, c))
                odd = builder.xor(odd, c)
            carries.append(carry)
            column.append(odd)
        planes.append(column[0])
        column = carries
    return planes


def _at_least(builder, planes, threshold, ones):
    """The word of elections whose count reaches a constant threshold: compared from the lowest bit up."""
    reached = ones
    for b, plane in enumerate(planes):
        reached = builder.and_(plane, reached) if threshold >> b & 1 else builder.or_(plane, reached)
    return reached


@intrinsic
def _majority(typingctx, votes, k, out):
    """The majority of a tuple of P vote arrays at words k to k + 7, stored in out."""

    def codegen(context, builder, signature, args):
        vector = ir.VectorType(ir.IntType(64), WIDE)
        array_type = signature.args[0].dtype

        def address(array, kind):
            data = cgutils.create_struct_proxy(kind)(context, builder, value=array).data
            return builder.bitcast(builder.gep(data, [args[1]]), vector.as_pointer())

        arrays = cgutils.unpack_tuple(builder, args[0])
        words = [builder.load(address(array, array_type), align=8) for array in arrays]
        ones = ir.Constant(vector, [-1] * WIDE)
        minus = _at_least(builder, _adder_tree(builder, words), len(words) // 2 + 1, ones)
        builder.store(minus, address(args[2], signature.args[2]), align=8)
        return context.get_dummy_value()

    return types.void(votes, k, out), codegen


@njit(nogil=True, cache=True)
def count(votes, weights, planes):
    """Count minus votes: votes uint64, (P, words); weights int64, (P,), at least 0; planes uint64, (bits, words),
    overwritten.

    2^bits must exceed the sum of the weights.
    """
    planes[:] = 0
    words = votes.shape[1]
    for begin in range(0, words, STRETCH):
        end = min(begin + STRETCH, words)
        for voter in range(votes.shape[0]):
            for low in range(planes.shape[0]):
                if weights[voter] >> low & 1:
                    _ripple(votes[voter, begin:end], planes[low:, begin:end])


@njit(nogil=True, cache=True)
def _ripple(vote, planes):
    """Add one vote to the counts."""
    carry = vote.copy()
    for b in range(planes.shape[0]):
        plane = planes[b]
        for k in range(carry.size):
            both = plane[k] & carry[k]
            plane[k] ^= carry[k]
            carry[k] = both


@njit(nogil=True, cache=True)
def add_counts(planes, others):
    """``planes += others``, both bit-sliced counts, uint64, (bits, words); others may have fewer planes. planes must
    be able to hold the sum.
    """
    for k in range(planes.shape[1]):
        carry = np.uint64(0)
        for b in range(planes.shape[0]):
            other = others[b, k] if b < others.shape[0] else np.uint64(0)
            odd = planes[b, k] ^ other
            both = planes[b, k] & other
            planes[b, k] = odd ^ carry
            carry = both | (odd & carry)


@njit(nogil=True, cache=True)
def exceeds(planes, threshold, out):
    """Set the bits of the elections whose count is above the threshold, 0 <= threshold < 2^bits."""
    for k in range(out.size):
        above = np.uint64(0)
        for b in range(planes.shape[0]):
            plane = planes[b, k]
            above = plane & above if threshold >> b & 1 else plane | above
        out[k] = above


@njit(nogil=True, cache=True)
def agreements(votes, counts):
    """Add to counts, int64, (P, P), for every two voters the elections in which they agree less those in which they
    differ, of votes, uint64, (P, words). All bits of all words count.
    """
    elections = 64 * votes.shape[1]
    for voter in range(votes.shape[0]):
        counts[voter, voter] += elections
        for other in range(voter):
            differ = 0
            for k in range(votes.shape[1]):
                differ += population(votes[voter, k] ^ votes[other, k])
            counts[voter, other] += elections - 2 * differ
            counts[other, voter] += elections - 2 * differ


@njit(nogil=True, cache=True)
def fused_majority(votes, out):
    """The majority of P = 2 to 16 voters: votes a tuple of P uint64 arrays, (words,); the adder tree is compiled for
    that P.

    words must be a multiple of 8.
    """
    for k in range(0, out.size, WIDE):
        _majority(votes, k, out)


def majority(votes: NDArray[np.uint64], out: NDArray[np.uint64]) -> None:
    """The majority of any number of voters: votes uint64, (P, words), C-contiguous; out uint64, (words,). An empty
    vote is plus.
    """
    voters, words = votes.shape
    whole = words - words % WIDE if 2 <= voters <= FUSED_VOTERS else 0
    if whole:
        fused_majority(tuple(vote[:whole] for vote in votes), out[:whole])
    if whole < words:
        planes = np.empty((voters.bit_length(), words - whole), np.uint64)
        count(votes[:, whole:], np.ones(voters, np.int64), planes)
        exceeds(planes, voters // 2, out[whole:])


def weighted_majority(votes: NDArray[np.uint64], weights: NDArray[np.int64], out: NDArray[np.uint64]) -> None:
    """As ``majority``, voter p counting ``weights[p]`` times (integers, at least 0): minus needs more than half of
    the whole weight.
    """
    weights = np.asarray(weights, np.int64)
    total = int(weights.sum())
    planes = np.empty((max(1, total.bit_length()), votes.shape[1]), np.uint64)
    count(votes, weights, planes)
    exceeds(planes, total // 2, out)
