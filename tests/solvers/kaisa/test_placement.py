"""The grid and the greedy placement, as pure functions."""

import itertools

import pytest

from hpcopt.solvers.kaisa.placement import Cost, Grid, place
from hpcopt.solvers.kaisa.plan import Plan, Sizes

SIZES = [1, 2, 3, 4, 5, 6, 7, 12, 128]


@pytest.mark.parametrize("size", SIZES)
def test_every_rank_is_served_once_by_every_column(size):
    for columns in range(1, min(size, 12) + 1):
        grid = Grid(size, columns)
        assert sorted(r for c in range(columns) for r in grid.members(c)) == list(range(size))
        for column, rank in itertools.product(range(columns), range(size)):
            source = grid.source(column, rank)
            assert source in grid.members(column)
            if grid.column(rank) == column:
                assert source == rank


@pytest.mark.parametrize("size", [1, 3, 4, 6])
def test_messages_match_in_pairs(size):
    costs = [Cost(1.0 + i, 1.0, 0.1) for i in range(7)]
    sizes = [Sizes(3 + i, 2 + i, 1 + i) for i in range(7)]
    for columns in range(1, size + 1):
        plans = [Plan(place(costs, Grid(size, columns)), sizes, rank) for rank in range(size)]
        for event in ("inverses", "gradients"):
            sent = [(p.rank, m.peer, m.stop - m.start) for p in plans for m in getattr(p, f"{event}_out")]
            received = [(m.peer, p.rank, m.stop - m.start) for p in plans for m in getattr(p, f"{event}_in")]
            assert sorted(sent) == sorted(received)
        assert sorted(i for p in plans for i in p.owned) == list(range(7))


def test_longest_first_is_close_to_the_best_possible():
    costs = [Cost(float(1 + i % 5), 0.0, 0.0) for i in range(23)]
    placement = place(costs, Grid(4, 4))
    loads = [sum(costs[i].invert_s for i in placement.owned(rank)) for rank in range(4)]
    ideal = sum(c.invert_s for c in costs) / 4
    assert max(loads) <= 4 / 3 * ideal  # Graham 1969: the bound of longest-processing-time-first


def test_the_grid_is_printed():
    text = place([Cost(1.0, 1.0, 0.1)] * 6, Grid(5, 2)).text()
    assert len(text.splitlines()) == 3
    assert "rank 4" in text
