"""A tree of additions that depends on the leaves alone."""

import math

import pytest
import torch

from hpcopt.comm import fixed_tree
from hpcopt.comm.fixed_tree import Branches, branches_of
from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.virtual import VirtualRanks
from hpcopt.comm.world import World
from hpcopt.errors import JobError

LONG = fixed_tree.SHORT_BYTES // 8 + 5


def by_hand(leaves: list[torch.Tensor]) -> torch.Tensor:
    """The tree as its definition has it: halves of the largest power of two, the rest to the right."""
    if len(leaves) == 1:
        return leaves[0]
    half = 1 << ((len(leaves) - 1).bit_length() - 1)
    return by_hand(leaves[:half]) + by_hand(leaves[half:])


def leaf(number: int, n: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(number)
    return (torch.randn(n, generator=generator) * 10 ** torch.randn(n, generator=generator)).to(dtype)


@pytest.mark.parametrize("count", [1, 2, 7, 12, 16])
@pytest.mark.parametrize("n", [0, 1, 37, LONG])
def test_sums_are_the_trees_bits_on_any_number_of_ranks(count, n):
    expected = by_hand([leaf(number, n) for number in range(count)])
    for size in {1, 2, 3, 4, 5, 7, count} & set(range(1, count + 1)):

        def program(transport, size=size):
            world, ranks = World(transport), VirtualRanks(count, transport.rank, size)
            sent_bytes = world.traffic.sent_bytes
            total = fixed_tree.total(world, ranks, [leaf(number, n) for number in ranks.held], "leaves")
            return total, world.traffic.sent_bytes - sent_bytes, fixed_tree.planned_bytes(n, 4, ranks, transport.rank)

        for total, sent_bytes, planned_bytes in run_ranks(size, program):
            assert total.numpy().tobytes() == expected.numpy().tobytes(), f"{size} ranks"
            assert sent_bytes == planned_bytes


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.complex64, torch.int64])
def test_any_dtype_is_summed(dtype):
    expected = by_hand([leaf(number, 40, dtype) for number in range(5)])
    for size in (1, 2, 4):
        ranks = run_ranks(
            size,
            lambda t, size=size: fixed_tree.total(
                World(t),
                VirtualRanks(5, t.rank, size),
                [leaf(k, 40, dtype) for k in VirtualRanks(5, t.rank, size).held],
                "leaves",
            ),
        )
        assert all(torch.equal(total, expected) for total in ranks)


@pytest.mark.parametrize("count", [3, 11, 16])
def test_the_error_is_within_its_bound(count):
    """And not zero: the bound is of something."""
    leaves = [leaf(number, 4000) for number in range(count)]
    exact, magnitudes = (sum(x.double() for x in xs) for xs in (leaves, [x.abs() for x in leaves]))
    error = (by_hand(leaves).double() - exact).abs()
    depth = math.ceil(math.log2(count)) * 2.0**-24
    assert float(error.max()) > 0
    assert bool((error <= depth / (1 - depth) * magnitudes).all())


def test_what_is_not_finite_spreads():
    def program(transport):
        ranks = VirtualRanks(6, transport.rank, 3)
        parts = [torch.ones(8) for _ in ranks.held]
        if transport.rank == 1:
            parts[0][3] = math.nan
        return fixed_tree.total(World(transport), ranks, parts, "leaves")

    for total in run_ranks(3, program):
        assert total.isnan().nonzero().tolist() == [[3]]
        assert total[0] == 6


@pytest.mark.parametrize("first", range(9))
def test_branches_are_whole_and_in_order(first):
    for stop in range(first + 1, 17):
        branches, kept = branches_of(range(first, stop)), Branches()
        for number in range(first, stop):
            kept.add(range(number, number + 1), torch.tensor([float(number)]))
        assert [leaf for branch in branches for leaf in branch] == list(range(first, stop))
        assert all(len(b).bit_count() == 1 and b.start % len(b) == 0 for b in branches)
        assert tuple(kept.leaves) == branches and [int(x) for x in kept.sums] == [sum(b) for b in branches]


def test_memory_comes_again():
    branches, values = Branches(), torch.ones(4)
    places = set()
    for _ in range(3):
        branches.clear()
        for number in range(6):
            branches.add(range(number, number + 1), values)
        assert branches.total().tolist() == [6.0] * 4
        places |= {x.data_ptr() for x in [*branches.sums, *branches._spare]}
    assert len(places) == 2  # as many as ever lie beside each other
    assert values.tolist() == [1.0] * 4


def test_ranks_without_a_virtual_one_are_refused():
    with pytest.raises(JobError, match="virtual_ranks = 4"):
        VirtualRanks(3, 0, 4)
