"""Two-phase all-reduce against float64 sums: exact with an exact codec, within a codec's own promise otherwise, and
nothing lost for good with error feedback.
"""

import pytest
import torch

from hpcopt.comm import two_phase
from hpcopt.comm.hierarchy import Hierarchy
from hpcopt.comm.loopback import run_ranks
from hpcopt.compress import QSGD, AdaComp, Codec, Dense, Half, Natural, Sign, TopK
from hpcopt.errors import HpcoptError

RANKS = [1, 2, 3, 4, 5, 6, 7, 8, 9, 16]
SIZES = [0, 1, 2, 63, 513, 5000]
CODECS = [QSGD(bits=4), Half(), Natural(), Sign(), TopK(fraction=0.1), TopK(threshold="sampled"), AdaComp()]


def inputs(size: int, n: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(size * 10_007 + n)
    return [torch.randn(n, generator=generator) for _ in range(size)]


def two_phase_of(t, x: torch.Tensor, codec: Codec, step: int = 0, **residuals) -> torch.Tensor:
    seeds = {"sender_seed": 1000 * step + t.rank, "owner_seed": 1000 * step + 999}
    return two_phase.all_reduce(t, x.clone(), codec, **seeds, **residuals)


@pytest.mark.parametrize("size", RANKS)
def test_an_exact_codec_gives_the_sum(size):
    for n in SIZES:
        x = inputs(size, n)
        results = run_ranks(size, lambda t, x=x: two_phase_of(t, x[t.rank], Dense()))
        expected = torch.stack(x).double().sum(0)
        assert all(torch.equal(result, results[0]) for result in results)
        torch.testing.assert_close(results[0].double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
@pytest.mark.parametrize("size", [2, 3, 5])
def test_every_codec_gives_all_ranks_the_same_bits(size, codec):
    for n in SIZES:
        x = inputs(size, n)
        results = run_ranks(size, lambda t, x=x: two_phase_of(t, x[t.rank], codec))
        assert all(torch.equal(result, results[0]) for result in results)
        assert results[0].isfinite().all()


def test_the_error_does_not_grow_with_the_ranks():
    def relative_error(size: int) -> float:
        x = inputs(size, 8192)
        total = torch.stack(x).sum(0)
        return float((run_ranks(size, lambda t: two_phase_of(t, x[t.rank], QSGD()))[0] - total).norm() / total.norm())

    assert relative_error(16) < 1.5 * relative_error(2)


def test_an_unbiased_codec_gives_an_unbiased_sum():
    x = inputs(3, 200)
    total = torch.stack(x).sum(0)

    def program(t):
        return torch.stack([two_phase_of(t, x[t.rank], QSGD(bits=3), step=step) for step in range(600)])

    draws = run_ranks(3, program)[0]
    standard_error = draws.std(0) / 600**0.5
    assert ((draws.mean(0) - total).abs() <= 5 * standard_error + 1e-5).all()


@pytest.mark.parametrize("codec", [Sign(), TopK(fraction=0.05), AdaComp()], ids=lambda codec: codec.name)
@pytest.mark.parametrize("size", [1, 2, 4])
def test_error_feedback_owes_exactly_what_was_not_delivered(size, codec):
    n, steps = 700, 12
    generator = torch.Generator().manual_seed(size)
    x = torch.randn(steps, size, n, generator=generator)

    def program(t):
        sender, owner = torch.zeros(n), torch.zeros(n)
        delivered = torch.zeros(n, dtype=torch.float64)
        for step in range(steps):
            own = x[step, t.rank]
            delivered += two_phase_of(t, own, codec, step, sender_residual=sender, owner_residual=owner)
        return delivered, sender, owner

    results = run_ranks(size, program)
    owed = sum(sender.double() + owner.double() for _, sender, owner in results)
    torch.testing.assert_close(results[0][0] + owed, x.double().sum((0, 1)), rtol=1e-4, atol=1e-3)


def test_planned_bytes_are_the_sent_bytes():
    codec, n = QSGD(bits=4), 10_000

    def program(t):
        two_phase_of(t, torch.ones(n), codec)
        return t.traffic.sent_bytes, two_phase.planned_bytes(n, t.size, t.rank, codec)

    for size in (1, 2, 3, 8):
        assert all(sent == planned for sent, planned in run_ranks(size, program))


def test_nan_is_an_error_on_the_rank_that_has_it():
    def program(t):
        return two_phase_of(t, torch.full((100,), float("nan") if t.rank == 1 else 1.0), QSGD())

    with pytest.raises(HpcoptError, match="NaN"):
        run_ranks(3, program)


@pytest.mark.parametrize(
    "nodes", [[0], [0, 0, 0], [0, 1, 2], [0, 0, 1, 1], [0, 1, 0, 1], [0, 0, 0, 1, 1], [2, 0, 0, 0, 1]]
)
def test_hierarchy_is_dense_inside_nodes(nodes):
    size = len(nodes)
    for n in SIZES:
        x = inputs(size, n)

        def program(t, codec, x=x):
            return Hierarchy(t, nodes[t.rank]).two_phase(x[t.rank].clone(), codec, sender_seed=0, owner_seed=1)

        results = run_ranks(size, lambda t, p=program: p(t, Dense()))
        assert all(torch.equal(result, results[0]) for result in results)
        torch.testing.assert_close(results[0].double(), torch.stack(x).double().sum(0), rtol=1e-5, atol=1e-5)
        coarse = run_ranks(size, lambda t, p=program: p(t, QSGD(bits=8)))
        assert all(torch.equal(result, coarse[0]) for result in coarse)
        assert (coarse[0] - results[0]).norm() <= 0.02 * torch.stack(x).norm()


def test_nothing_crosses_a_node_that_is_alone():
    x = inputs(3, 1000)
    exact = run_ranks(3, lambda t: Hierarchy(t, 7).two_phase(x[t.rank].clone(), Sign(), sender_seed=0, owner_seed=1))
    torch.testing.assert_close(exact[0], torch.stack(x).sum(0), rtol=1e-5, atol=1e-5)
