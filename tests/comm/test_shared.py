"""The sum by way of shared memory is the ring's, bit for bit, which test_all_reduce.py holds against numpy's."""

import pytest
import torch

from hpcopt.comm import dense, loopback, ring, shared
from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World, connect
from hpcopt.errors import PeerError


def inputs(size: int, n: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(size * 10_007 + n)
    return [(10 * torch.randn(n, generator=generator)).to(dtype) for _ in range(size)]


def by_memory(transport, x, op="sum"):
    return shared.all_reduce(transport, transport.shared_memory(), x, op)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8, 9, 16])
def test_bits_are_the_rings(size, dtype, monkeypatch):
    """Of sums that follow each other, in one segment and in many."""
    monkeypatch.setattr(loopback, "SHARED_BYTES", 64 * (1 + 2 * (size + 1) * 3))
    vectors = [inputs(size, n, dtype) for n in (0, 1, 2, 7, 64, 1000, 1025, 5000)]
    by_ring = run_ranks(size, lambda t: [ring.all_reduce(t, x[t.rank].clone()) for x in vectors])
    results = run_ranks(size, lambda t: [by_memory(t, x[t.rank].clone()) for x in vectors])
    for mine, theirs in zip(results, by_ring, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


@pytest.mark.parametrize("op", ["max", "min"])
def test_max_and_min_are_exact(op):
    x = inputs(5, 333)
    results = run_ranks(5, lambda t: by_memory(t, x[t.rank].clone(), op))
    assert torch.equal(results[3], getattr(torch, f"a{op}")(torch.stack(x), dim=0))


def test_nan_reaches_every_rank():
    results = run_ranks(3, lambda t: by_memory(t, torch.tensor([1.0, float("nan") if t.rank == 1 else 2.0, 3.0])))
    assert [result.isnan().tolist() for result in results] == [[False, True, False]] * 3


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_it_sends_as_much_as_the_ring(size):
    def sent_bytes(all_reduce):
        def program(t):
            all_reduce(t, torch.ones(1001))
            return t.traffic.sent_bytes

        return sum(run_ranks(size, program))

    assert sent_bytes(by_memory) == sent_bytes(ring.all_reduce)


@pytest.mark.parametrize("others", [torch.zeros(6), torch.zeros(5, dtype=torch.int32)])
def test_ranks_that_bring_something_else_are_named(others):
    def program(t):
        by_memory(t, torch.zeros(5) if t.rank < 2 else others)

    with pytest.raises(PeerError, match=r"rank [02] brought sum of [56] x torch.*, not sum of"):
        run_ranks(3, program)


def test_long_tensors_take_it():
    def program(t):
        return torch.equal(dense.all_reduce(t, torch.ones(1 << 15)), torch.full((1 << 15,), 3.0)), t._shared is not None

    assert run_ranks(3, program) == [(True, True)] * 3


@pytest.fixture(scope="module")
def world() -> World:
    return connect("mpi")


@pytest.mark.parallel([2, 3, 4])
def test_mpi(world):
    assert world.transport.shared_memory() is world.transport.shared_memory() is not None
    for n in (0, 1, 1000, 300_001, 3_000_001):
        x = inputs(world.size, n)[world.rank]
        assert torch.equal(by_memory(world.transport, x.clone()), ring.all_reduce(world.transport, x.clone()))


@pytest.mark.parallel([4])
def test_groups_and_duplicates_have_memory_of_their_own(world):
    for transport in (world.split(world.rank % 2).transport, world.transport.duplicate()):
        for _ in range(3):
            x = torch.full((50_000,), float(transport.rank))
            assert by_memory(transport, x).eq(sum(range(transport.size))).all()
        transport.close()
