"""The vote is the sign of the sum of signs, with ties, zeros and NaN to plus, on every rank, flat or by nodes."""

import itertools

import pytest
import torch

from hpcopt.comm import vote
from hpcopt.comm.hierarchy import Hierarchy
from hpcopt.comm.loopback import run_ranks

SIZES = [0, 1, 63, 64, 65, 1000, 5000]


def expected(x: torch.Tensor, weights=None) -> torch.Tensor:
    """From the rule, in integers: x has shape (ranks, n)."""
    weights = torch.tensor(weights or [1] * len(x)).unsqueeze(1)
    minus = ((x < 0) * weights).sum(0)
    return torch.where(2 * minus > weights.sum(), -1.0, 1.0)


def ballots(size: int, n: int) -> torch.Tensor:
    x = torch.randn(size, n, generator=torch.Generator().manual_seed(31 * size + n))
    x[:, ::7] = 0.0
    x[:, 1::7] = -0.0
    x[:, 2::31] = float("nan")
    x[0, 3::31] = -float("inf")
    return x


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 17])
def test_the_vote_is_the_sign_of_the_sum_of_signs(size):
    for n in SIZES:
        x = ballots(size, n)
        for result in run_ranks(size, lambda t, x=x: vote.all_reduce(t, x[t.rank].clone())):
            assert torch.equal(result, expected(x))


@pytest.mark.parametrize("size", range(2, 18))
def test_every_number_of_minus_votes(size):
    """Each election has its own set of minus voters: all sets up to 10 ranks, 1,024 of each count above."""
    if size <= 10:
        minus = torch.tensor(list(itertools.product([False, True], repeat=size))).T
    else:
        generator = torch.Generator().manual_seed(size)
        order = torch.rand(size, 1024 * (size + 1), generator=generator).argsort(0)
        minus = order < torch.arange(size + 1).repeat_interleave(1024)
    x = torch.where(minus, -1.0, 1.0)
    assert (minus.sum(0).unique() == torch.arange(size + 1)).all()
    for result in run_ranks(size, lambda t: vote.all_reduce(t, x[t.rank].clone())):
        assert torch.equal(result, expected(x))


@pytest.mark.parametrize("weights", [[1, 1, 1, 1], [3, 1, 1, 1], [2, 0, 5, 4], [0, 0, 0, 0], [100, 1, 99, 1]])
def test_weights(weights):
    x = ballots(4, 700)
    for result in run_ranks(4, lambda t: vote.all_reduce(t, x[t.rank].clone(), weights)):
        assert torch.equal(result, expected(x, weights))
    nodes = [0, 0, 1, 1]

    def by_nodes(t):
        return Hierarchy(t, nodes[t.rank]).vote(x[t.rank].clone(), weights[:2] if t.rank < 2 else weights[2:])

    assert torch.equal(run_ranks(4, by_nodes)[3], expected(x, weights))


@pytest.mark.parametrize(
    "nodes", [[0], [0, 0], [0, 1], [0, 0, 1, 1], [0, 1, 0, 1], [0, 0, 0, 1], [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4]
)
def test_the_vote_by_nodes_is_the_flat_vote(nodes):
    for n in SIZES:
        x = ballots(len(nodes), n)
        results = run_ranks(len(nodes), lambda t, x=x: Hierarchy(t, nodes[t.rank]).vote(x[t.rank].clone()))
        assert all(torch.equal(result, expected(x)) for result in results)


def test_a_scale_of_ones_own_changes_nothing():
    x = ballots(3, 500)
    scaled = x * torch.tensor([[1e-20], [1.0], [1e20]])
    plain = run_ranks(3, lambda t: vote.all_reduce(t, x[t.rank].clone()))
    assert torch.equal(run_ranks(3, lambda t: vote.all_reduce(t, scaled[t.rank].clone()))[0], plain[0])


def test_a_minority_cannot_turn_a_unanimous_vote():
    x = torch.randn(500, generator=torch.Generator().manual_seed(0))
    for liars in range(4):
        results = run_ranks(7, lambda t, liars=liars: vote.all_reduce(t, -x if t.rank < liars else x.clone()))
        assert torch.equal(results[0], torch.where(x < 0, -1.0, 1.0))


def test_one_bit_each_way():
    n = 64 * 8 * 12  # whole grains for every P below

    def program(t):
        vote.all_reduce(t, torch.ones(n))
        return t.traffic.sent_bytes

    for size in (1, 2, 3, 4):
        assert run_ranks(size, program) == [2 * (size - 1) * n // 8 // size] * size
        assert [vote.planned_bytes(n, size, rank) for rank in range(size)] == run_ranks(size, program)


def test_outcomes_come_in_stretches_that_cover_all():
    def program(t):
        x, words = torch.ones(10_000), torch.empty(vote.ballot_words(10_000), dtype=torch.int64)
        return sorted((s.start, s.stop) for s in vote.vote(t, x, words))

    for stretches in run_ranks(3, program):
        assert [0, *(stop for _, stop in stretches)] == [*(start for start, _ in stretches), vote.ballot_words(10_000)]
