"""Sums over virtual ranks in a fixed tree: the same bits on any number of ranks.

The leaves of the tree are what virtual ranks 0 to V - 1 bring. A branch is the sum of 2^j leaves, the first of them at
a multiple of 2^j: its left half plus its right half. If V is no power of two, the branches that V is made of are added
from the right. So the numbers of the leaves alone decide which values meet in which addition. A rank holds neighbouring
leaves; it adds what makes whole branches, at most ``2 log2 V`` of them, and whoever finishes the sum adds the rest.

A value goes through at most ``ceil(log2 V)`` additions: with u = 2^-24 of float32, a sum is off by no more than
``ceil(log2 V) u / (1 - ceil(log2 V) u)`` times the sum of magnitudes (Higham 1993, doi:10.1137/0914050, 3.6), where a
ring over P ranks may be off by P - 1 u. Nothing is converted and nothing rounded otherwise: any dtype can be summed,
and Inf and NaN spread as ever.

Cost of n bytes, of which a rank holds k branches: ``2 (P - 1) alpha + (k + 1) (P - 1) / P n / B``; k is 1 where P
divides a V that is a power of two, which is the ring's cost. There short sums go by recursive doubling, as others do.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from hpcopt.comm import dense, doubling
from hpcopt.comm.ragged import exchange
from hpcopt.comm.shards import shards
from hpcopt.comm.transport import Transport
from hpcopt.comm.virtual import VirtualRanks
from hpcopt.comm.world import World

SHORT_BYTES = 512 * 1024  # of all branches; below this every rank gets all of them, and adds
GRAIN = 16  # values; what ranks finish begins at a multiple


class Branches:
    """Sums of neighbouring leaves, as far as they are whole branches, from left to right.

    Attributes:
        leaves: of each branch.
        sums: each of one shape.

    >>> branches = Branches()
    >>> for leaf in range(5, 8):
    ...     branches.add(range(leaf, leaf + 1), torch.tensor([float(leaf)]))
    >>> branches.leaves, branches.sums
    ([range(5, 6), range(6, 8)], [tensor([5.]), tensor([13.])])
    """

    def __init__(self) -> None:
        self.leaves: list[range] = []
        self.sums: list[Tensor] = []
        self._spare: list[Tensor] = []

    def add(self, leaves: range, values: Tensor, *, given: bool = False) -> None:
        """Take in the next branch to the right: a copy of it, if it stays one, unless it is ``given`` away."""
        while self.leaves and _are_siblings(self.leaves[-1], leaves):
            left = self.sums.pop().add_(values)
            if given:
                self._spare.append(values)
            values, leaves, given = left, range(self.leaves.pop().start, leaves.stop), True
        if not given:
            values = self._spare.pop().copy_(values) if self._spare else values.clone()
        self.leaves.append(leaves)
        self.sums.append(values)

    def total(self) -> Tensor:
        """The sum of all leaves from 0 on; it takes the branches' place."""
        while len(self.sums) > 1:
            right = self.sums.pop()
            self.sums[-1].add_(right)
            self._spare.append(right)
        return self.sums[0]

    def clear(self) -> None:
        """Forget all, but for the memory, which the next leaves of this shape take."""
        self._spare += self.sums
        self.leaves, self.sums = [], []


def _are_siblings(left: range, right: range) -> bool:
    return len(left) == len(right) and left.start % (2 * len(left)) == 0


@lru_cache(maxsize=4096)  # ranks hold the same ones in every step
def branches_of(leaves: range) -> tuple[range, ...]:
    """The branches that neighbouring leaves make.

    >>> branches_of(range(3, 10))
    (range(3, 4), range(4, 8), range(8, 10))
    """
    found: list[range] = []
    for leaf in leaves:
        branch = range(leaf, leaf + 1)
        while found and _are_siblings(found[-1], branch):
            branch = range(found.pop().start, branch.stop)
        found.append(branch)
    return tuple(found)


def all_reduce(transport: Transport, ranks: VirtualRanks, branches: Branches, out: Tensor) -> Tensor:
    """Fill out, contiguous, with the sum of all leaves, of whose branches these are the ones on this rank. Collective:
    over the transport's ranks, with out of one shape and dtype. The branches are used up.

    Returns:
        out itself.
    """
    size, n = transport.size, out.numel()
    if size == 1:
        with transport.traffic.decoding():
            return out.copy_(branches.total())
    if _is_doubled(out.nbytes, ranks):
        with transport.traffic.decoding():
            out.copy_(branches.total())
        with transport.traffic.waiting():
            return doubling.all_reduce(transport, out)
    if _is_short(out.nbytes, ranks):
        return _all_to_all(transport, ranks, branches, out)
    stretches = shards(n, size, GRAIN)
    flat = out.view(-1)
    own = reduce_to_owners(transport, ranks, branches, [s.stop - s.start for s in stretches])
    with transport.traffic.decoding():
        flat[stretches[transport.rank]] = own
    others = [rank for rank in range(size) if rank != transport.rank]
    with transport.traffic.waiting():
        exchange(transport, [(own, rank) for rank in others], [(flat[stretches[rank]], rank) for rank in others])
    return out


def reduce_to_owners(transport: Transport, ranks: VirtualRanks, branches: Branches, lengths: Sequence[int]) -> Tensor:
    """Give the sum of all leaves in this rank's segment, shape (lengths[rank],); the segments are of all ranks, one
    after the other. Collective: over the transport's ranks. The branches are used up.
    """
    if transport.size == 1:
        return branches.total().view(-1)
    rank, segments = transport.rank, [torch.split(x.view(-1), list(lengths)) for x in branches.sums]
    own = segments[0][rank]
    others = [other for other in range(transport.size) if other != rank]
    landing = {other: [own.new_empty(own.numel()) for _ in branches_of(ranks.held_by(other))] for other in others}
    incoming = [(x, other) for other, parts in landing.items() for x in parts]
    with transport.traffic.waiting():
        exchange(transport, [(parts[other], other) for parts in segments for other in others], incoming)
    landing[rank] = [parts[rank] for parts in segments]
    with transport.traffic.decoding():
        return _added(ranks, (landing[other] for other in range(transport.size)))


def total(world: World, ranks: VirtualRanks, parts: Sequence[Tensor], what: str) -> Tensor:
    """The sum over all virtual ranks of a tensor that each has, on every rank. Collective: over the world.

    Args:
        parts: of those on this rank, in their order.
        what: they are, for the watch over collectives.
    """
    branches = Branches()
    for leaf, x in zip(ranks.held, parts, strict=True):
        branches.add(range(leaf, leaf + 1), x)
    with world.watch(what, world.ranks):
        return all_reduce(world.transport, ranks, branches, torch.empty_like(parts[0]))


def planned_bytes(n: int, item_bytes: int, ranks: VirtualRanks, rank: int) -> int:
    """Bytes that a rank sends for the sum of n values."""
    if ranks.ranks == 1:
        return 0
    if _is_doubled(n * item_bytes, ranks):
        return doubling.planned_bytes(n * item_bytes, ranks.ranks, rank)
    if _is_short(n * item_bytes, ranks):
        return (ranks.ranks - 1) * _most_branches(ranks) * n * item_bytes
    stretch = shards(n, ranks.ranks, GRAIN)[rank]
    own: int = stretch.stop - stretch.start
    return item_bytes * (len(branches_of(ranks.held_by(rank))) * (n - own) + (ranks.ranks - 1) * own)


def _all_to_all(transport: Transport, ranks: VirtualRanks, branches: Branches, out: Tensor) -> Tensor:
    """Every rank gets all branches: one collective, and each adds for itself."""
    missing = _most_branches(ranks) - len(branches.sums)
    mine = torch.stack([x.view(-1) for x in branches.sums] + missing * [out.new_zeros(out.numel())])
    everyones = mine.new_empty(transport.size, *mine.shape)
    with transport.traffic.waiting():
        transport.all_gather(mine, everyones)
    with transport.traffic.decoding():
        return out.copy_(_added(ranks, everyones).view(out.shape))


def _added(ranks: VirtualRanks, everyones: Iterable[Iterable[Tensor]]) -> Tensor:
    """The sum of all branches, given rank by rank, which may be changed."""
    tree = Branches()
    for rank, parts in enumerate(everyones):
        for leaves, x in zip(branches_of(ranks.held_by(rank)), parts, strict=False):
            tree.add(leaves, x, given=True)
    return tree.total()


@lru_cache(maxsize=64)
def _most_branches(ranks: VirtualRanks) -> int:
    return max(len(branches_of(ranks.held_by(rank))) for rank in range(ranks.ranks))


def _is_doubled(values_bytes: int, ranks: VirtualRanks) -> bool:
    """Whether short sums go by recursive doubling, whose additions are the tree's where each rank has one branch."""
    return values_bytes < dense.SHORT_BYTES and all(x.bit_count() == 1 for x in (ranks.count, ranks.ranks))


def _is_short(values_bytes: int, ranks: VirtualRanks) -> bool:
    return values_bytes * _most_branches(ranks) * ranks.ranks < SHORT_BYTES
