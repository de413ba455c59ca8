"""Ring and recursive doubling against numpy's sum, for every kind of P and n, on threads; MPI is held to the same in
test_mpi.py.
"""

import numpy as np
import pytest
import torch

from hpcopt.comm import doubling, ring
from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.traffic import dense_all_reduce_bytes

RANKS = [1, 2, 3, 4, 5, 6, 7, 8, 9, 16]
SIZES = [0, 1, 2, 7, 64, 1000, 1025]


def inputs(size: int, n: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(size * 10_007 + n)
    return [torch.randn(n, generator=generator) for _ in range(size)]


@pytest.mark.parametrize("all_reduce", [ring.all_reduce, doubling.all_reduce])
@pytest.mark.parametrize("size", RANKS)
def test_sum_is_numpys_and_bit_equal_on_all_ranks(all_reduce, size):
    for n in SIZES:
        x = inputs(size, n)
        results = run_ranks(size, lambda t, x=x: all_reduce(t, x[t.rank].clone()))
        expected = np.sum([v.numpy() for v in x], axis=0, dtype=np.float64)
        np.testing.assert_allclose(results[0].numpy(), expected, rtol=1e-5, atol=1e-5)
        assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("all_reduce", [ring.all_reduce, doubling.all_reduce])
@pytest.mark.parametrize("op", ["max", "min"])
def test_max_and_min_are_exact(all_reduce, op):
    x = inputs(5, 33)
    results = run_ranks(5, lambda t: all_reduce(t, x[t.rank].clone(), op))
    assert torch.equal(results[3], getattr(torch, f"a{op}")(torch.stack(x), dim=0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int32, torch.int8])
def test_dtypes(dtype):
    x = [torch.arange(11).to(dtype) for _ in range(3)]
    results = run_ranks(3, lambda t: ring.all_reduce(t, x[t.rank].clone()))
    assert torch.equal(results[2], (3 * torch.arange(11)).to(dtype))


@pytest.mark.parametrize("segment_bytes", [4, 12, 100, 1 << 20])
@pytest.mark.parametrize("size", [2, 3, 5])
def test_segments_do_not_change_a_bit(size, segment_bytes):
    x = inputs(size, 173)
    whole = run_ranks(size, lambda t: ring.all_reduce(t, x[t.rank].clone()))
    cut = run_ranks(size, lambda t: ring.all_reduce(t, x[t.rank].clone(), segment_bytes=segment_bytes))
    assert all(torch.equal(a, b) for a, b in zip(whole, cut, strict=True))


@pytest.mark.parametrize("size", RANKS)
def test_reduce_scatter_finishes_the_own_chunk(size):
    x = inputs(size, 50)
    results = run_ranks(size, lambda t: ring.reduce_scatter(t, x[t.rank].clone()).clone())
    torch.testing.assert_close(torch.cat(results), torch.stack(x).sum(0), rtol=1e-5, atol=1e-5)


def test_all_gather_takes_each_chunk_from_its_owner():
    def program(t):
        x = torch.full((23,), -1.0)
        ring.chunks(x, t.size)[t.rank].fill_(t.rank)
        return ring.all_gather(t, x)

    expected = torch.cat([torch.full((len(c),), float(r)) for r, c in enumerate(ring.chunks(torch.empty(23), 4))])
    assert all(torch.equal(result, expected) for result in run_ranks(4, program))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 8])
def test_the_ring_sends_the_least_possible(size):
    def program(t):
        ring.all_reduce(t, torch.ones(size * 100))
        return t.traffic.sent_bytes

    assert run_ranks(size, program) == [dense_all_reduce_bytes(size * 400, size)] * size


def test_nan_reaches_every_rank():
    def program(t):
        return ring.all_reduce(t, torch.tensor([1.0, float("nan") if t.rank == 1 else 2.0, 3.0]))

    for result in run_ranks(3, program):
        assert result.isnan().tolist() == [False, True, False]


def test_128_ranks():
    results = run_ranks(128, lambda t: ring.all_reduce(t, torch.full((300,), float(t.rank))))
    assert all(torch.equal(result, torch.full((300,), 127 * 64.0)) for result in results)
