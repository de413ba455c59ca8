"""The MPI and Horovod transports keep the contract that the loopback ranks keep, under a real mpirun."""

import pytest
import torch
from mpi4py import MPI

from hpcopt.comm import dense, doubling, ring, two_phase, vote
from hpcopt.comm.hierarchy import Hierarchy
from hpcopt.comm.mpi import MpiTransport
from hpcopt.comm.world import World, connect
from hpcopt.compress import QSGD, AdaComp, Dense, Sign, TopK
from hpcopt.errors import UnsupportedError
from hpcopt.exchange import Exchange, TwoPhaseConfig
from hpcopt.testing.transport import check_transport


@pytest.fixture(scope="module")
def world() -> World:
    return connect("mpi")


def inputs(size: int, n: int) -> torch.Tensor:
    return torch.randn(size, n, generator=torch.Generator().manual_seed(size * 10_007 + n))


@pytest.mark.parallel([2, 3, 4])
@pytest.mark.parametrize("all_reduce", [ring.all_reduce, doubling.all_reduce])
def test_sum_and_bits(world, all_reduce):
    for n in (0, 1, 5, 1000, 300_001):
        x = inputs(world.size, n)
        total = all_reduce(world.transport, x[world.rank].clone())
        torch.testing.assert_close(total, x.sum(0), rtol=1e-5, atol=1e-5)
        world.require_same([total], "the sums")


@pytest.mark.parallel([2])
def test_a_tensor_with_gaps_is_refused(world):
    """MPI is given an address and a length: it would send what lies between."""
    with pytest.raises(ValueError, match="not contiguous"):
        world.transport.send(torch.zeros(4, 4)[:, 0], 0)
    with pytest.raises(ValueError, match="not contiguous"):
        world.transport.receive(torch.zeros(4, 4).t(), 0)


@pytest.mark.parallel([1, 2, 3, 4])
def test_the_contract(world):
    check_transport(world.transport)


@pytest.mark.parallel([2, 3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_two_byte_values_are_summed_in_float32(world, dtype):
    x = torch.full((5,), 257.0 if world.rank == 0 else 0.75).to(dtype)  # bfloat16 has no 257, and the sum rounds once
    expected = torch.stack([torch.full((5,), 257.0).to(dtype).float(), *torch.full((world.size - 1, 5), 0.75)]).sum(0)
    world.transport.all_reduce(x)
    assert torch.equal(x, expected.to(dtype))


@pytest.mark.parallel([2, 3])
def test_the_contract_over_horovod(horovod):
    """As far as Horovod goes: it has no messages, no groups, and sums no bytes."""
    world = connect("horovod")
    check_transport(world.transport)
    with pytest.raises(UnsupportedError, match=r"horovod transport has no all_reduce of torch.uint8"):
        world.all_reduce(torch.zeros(1, dtype=torch.uint8))
    assert world.gather_text(f"rank {world.rank}" * world.rank) == [f"rank {r}" * r for r in range(world.size)]


@pytest.mark.parallel([2, 3])
@pytest.mark.parametrize("codec", [QSGD(), Sign(), TopK(threshold="sampled"), AdaComp()], ids=lambda codec: codec.name)
def test_an_exchange_in_two_phases_over_horovod_has_the_bits_of_messages(world, horovod, codec):
    from hpcopt.comm.horovod import HorovodTransport

    sums = []
    for transport in (world.transport, HorovodTransport()):
        p = torch.nn.Parameter(torch.zeros(5000))
        exchange = Exchange(World(transport), [("p", p)], TwoPhaseConfig(codec=codec))
        for step in range(3):
            exchange.zero()
            p.grad.copy_(inputs(world.size, 5000)[world.rank] * (step + 1))
            exchange.finish()
            sums.append(p.grad.clone())
        assert 0 < exchange._transport.traffic.sent_bytes + exchange._world.traffic.sent_bytes < 3 * 4 * 2 * 5000
        exchange.remove()
    assert all(torch.equal(by_messages, by_slots) for by_messages, by_slots in zip(sums[:3], sums[3:], strict=True))


@pytest.mark.parallel([3])
def test_messages_are_counted_to_the_byte(world):
    world.traffic.lap()
    ring.all_reduce(world.transport, torch.ones(300))
    assert world.traffic.lap().sent_bytes == 2 * 2 * 400


@pytest.mark.parallel([2, 3, 4])
def test_compressed_collectives(world):
    """The same algorithms as on threads, and a payload whose size only its sender knows."""
    for n in (0, 1, 700, 100_001):
        x = inputs(world.size, n)
        seeds = {"sender_seed": world.rank, "owner_seed": 9}
        exact = two_phase.all_reduce(world.transport, x[world.rank].clone(), Dense(), **seeds)
        torch.testing.assert_close(exact, x.sum(0), rtol=1e-5, atol=1e-5)
        for codec in (QSGD(), TopK(threshold="sampled")):
            total = two_phase.all_reduce(world.transport, x[world.rank].clone(), codec, **seeds)
            world.require_same([total], codec.name)
        half = ring.all_reduce(world.transport, x[world.rank].clone(), wire=torch.bfloat16)
        torch.testing.assert_close(half, x.sum(0), rtol=0.05, atol=0.05)
        world.require_same([half], "the half-precision sums")
        majority = torch.where(2 * (x < 0).sum(0) > world.size, -1.0, 1.0)
        assert torch.equal(vote.all_reduce(world.transport, x[world.rank].clone()), majority)
        by_nodes = Hierarchy(world.transport, node=world.rank // 2)
        assert torch.equal(by_nodes.vote(x[world.rank].clone()), majority)


@pytest.mark.parallel([2, 3])
def test_closing_closes_what_was_made_of_it():
    """MPICH's end fails between hosts while a window is open, on however few ranks."""
    whole = MpiTransport()
    made = [whole.duplicate(), whole.split(whole.rank % 2, whole.rank)]
    for transport in made:
        dense.long(transport, torch.ones(3))
    assert made[1].shared_memory() is None or made[1].size > 1
    made[1].close()
    whole.close()
    assert all(transport.communicator == MPI.COMM_NULL for transport in (whole, *made))
