"""Staging changes nothing but where bytes lie meanwhile: here every tensor is staged, though all are in main memory."""

import pytest
import torch

from hpcopt.comm import dense, doubling, ring, two_phase
from hpcopt.comm.hierarchy import Hierarchy
from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.mpi import MpiTransport
from hpcopt.comm.staged import StagedTransport
from hpcopt.comm.transport import Transport
from hpcopt.comm.world import World
from hpcopt.compress import QSGD, AdaComp, TopK
from hpcopt.errors import UnsupportedError

N = 40_001


def staged(transport: Transport) -> StagedTransport:
    return StagedTransport(transport, away=lambda x: True)


def values(rank: int, n: int = N) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(rank))


def compressed(t: Transport, codec) -> torch.Tensor:
    return two_phase.all_reduce(t, values(t.rank), codec, sender_seed=t.rank, owner_seed=9)


def by_collectives(t: Transport, codec) -> torch.Tensor:
    """As over Horovod, which has no messages; of the same bits as by messages, with what is owed from step to step."""
    found = []
    for t.point_to_point in (False, True):
        owed = {name: torch.zeros(N) for name in ("sender_residual", "owner_residual")}
        seeds = {"sender_seed": t.rank, "owner_seed": 9}
        found.append([two_phase.all_reduce(t, values(t.rank), codec, **seeds, **owed) for _ in range(3)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    return torch.cat(found[0])


ALGORITHMS = {
    "ring": lambda t: ring.all_reduce(t, values(t.rank)),
    "ring in bfloat16": lambda t: ring.all_reduce(t, values(t.rank), wire=torch.bfloat16, segment_bytes=1000),
    "doubling": lambda t: doubling.all_reduce(t, values(t.rank), "max"),
    "two-phase": lambda t: compressed(t, QSGD()),
    "two-phase, ragged": lambda t: compressed(t, TopK(fraction=0.1, threshold="sampled")),
    "two-phase, by collectives": lambda t: by_collectives(t, QSGD()),
    "two-phase, by collectives, ragged": lambda t: by_collectives(t, TopK(fraction=0.1, threshold="sampled")),
    "two-phase, by collectives, AdaComp": lambda t: by_collectives(t, AdaComp()),
    "nodes and lanes": lambda t: Hierarchy(t, t.rank // 2).two_phase(
        values(t.rank), QSGD(), sender_seed=t.rank // 2, owner_seed=9
    ),
    "library's sum": lambda t: dense_by_library(t),
    "all-to-all": lambda t: all_to_all(t),
    "world": lambda t: World(t).all_gather(World(t).broadcast(values(t.rank, 7), 1)),
    "another thread's": lambda t: dense.all_reduce(t.duplicate(), values(t.rank)),
}


def dense_by_library(t: Transport) -> torch.Tensor:
    x = values(t.rank)
    t.all_reduce(x)
    return x


def all_to_all(t: Transport) -> torch.Tensor:
    x = values(t.rank, 3 * t.size).view(t.size, 3)
    out = torch.empty_like(x)
    t.all_to_all(x, out)
    return out


@pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS)
def test_the_bits_are_those_without_staging(algorithm):
    direct = run_ranks(4, algorithm)
    by_way_of_copies = run_ranks(4, lambda t: algorithm(staged(t)))
    assert all(torch.equal(a, b) for a, b in zip(direct, by_way_of_copies, strict=True))


def test_a_message_is_what_it_was_when_it_was_sent_and_lands_when_it_is_waited_for():
    def program(t):
        x, out = values(0, 9), torch.zeros(9)
        receive = t.receive(out, 0)
        t.send(x, 0)
        x.zero_()
        assert not out.any()
        assert receive.wait() == receive.wait() == 36
        return torch.equal(out, values(0, 9))

    assert run_ranks(1, lambda t: program(staged(t))) == [True]


def test_copies_lie_in_memory_that_is_used_again():
    def program(t):
        made = []
        for _ in range(3):
            for algorithm in ALGORITHMS.values():
                algorithm(t)
            t.barrier()
            made.append(t.slots.made)
        return made

    for first, *later in run_ranks(2, lambda t: program(staged(t))):
        assert first and later == [first, first]


@pytest.mark.parallel([2, 3])
def test_what_only_mpi_has_is_there():
    """Memory that the ranks share, and a communicator, for checkpoints in one file."""
    world = MpiTransport()
    assert staged(world).shared_memory() is world.shared_memory()
    assert staged(world).communicator is world.communicator
    world.close()


@pytest.mark.parallel([2, 3])
@pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS)
def test_over_mpi(algorithm):
    """To the bits of the same MPI: each has an order of its own for its sums."""
    world = MpiTransport()
    assert torch.equal(algorithm(staged(world)), algorithm(world))


def test_mpi_refuses_what_it_cannot_read():
    with pytest.raises(UnsupportedError, match="main memory only"):
        MpiTransport().send(torch.zeros(3, device="meta"), 0)
