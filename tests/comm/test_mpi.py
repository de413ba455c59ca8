"""The MPI and Horovod transports keep the contract that the loopback ranks keep, under a real mpirun."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from mpi4py import MPI

from hpcopt.comm import dense, doubling, ring, two_phase, vote
from hpcopt.comm.hierarchy import Hierarchy
from hpcopt.comm.mpi import MpiTransport
from hpcopt.comm.world import World, connect
from hpcopt.compress import QSGD, Dense, TopK
from hpcopt.errors import PeerError, UnsupportedError


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


@pytest.mark.parallel([2, 3, 4])
def test_collectives(world):
    check_collectives(world)


@pytest.mark.parallel([2, 3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_two_byte_values_are_summed_in_float32(world, dtype):
    x = torch.full((5,), 257.0 if world.rank == 0 else 0.75).to(dtype)  # bfloat16 has no 257, and the sum rounds once
    expected = torch.stack([torch.full((5,), 257.0).to(dtype).float(), *torch.full((world.size - 1, 5), 0.75)]).sum(0)
    world.transport.all_reduce(x)
    assert torch.equal(x, expected.to(dtype))


@pytest.mark.parallel([2, 3])
def test_horovod_collectives(horovod):
    world = connect("horovod")
    check_collectives(world)
    with pytest.raises(UnsupportedError, match="horovod transport has no point-to-point"):
        world.transport.send(torch.zeros(1), 0)
    with pytest.raises(UnsupportedError, match=r"horovod transport has no all_reduce of torch.uint8"):
        world.all_reduce(torch.zeros(1, dtype=torch.uint8))
    with pytest.raises(UnsupportedError, match="horovod transport has no split"):
        world.split(0)


def check_collectives(world: World) -> None:
    rank, size = world.rank, world.size
    for dtype in (torch.float32, torch.float64, torch.int64):
        x = torch.arange(5).to(dtype) + rank
        assert world.all_reduce(x.clone(), "max").tolist() == [i + size - 1 for i in range(5)]
        assert world.all_reduce(x.clone(), "min").tolist() == list(range(5))
        assert world.all_reduce(x.clone()).tolist() == [size * i + size * (size - 1) // 2 for i in range(5)]
    for dtype in (torch.float32, torch.int64, torch.uint8):
        x = torch.arange(5).to(dtype) + rank
        assert world.broadcast(x.clone(), root=size - 1).tolist() == [i + size - 1 for i in range(5)]
        assert world.all_gather(x).tolist() == [[i + r for i in range(5)] for r in range(size)]
        out = torch.empty(size, 2, dtype=dtype)
        world.transport.all_to_all(torch.tensor([[rank, to] for to in range(size)], dtype=dtype), out)
        assert out.tolist() == [[source, rank] for source in range(size)]
    assert world.all_gather(torch.empty(0)).shape == (size, 0)
    assert world.gather_text(f"rank {rank}" * rank) == [f"rank {r}" * r for r in range(size)]


@pytest.mark.parallel([4])
def test_groups(world):
    group = world.split(color=world.rank % 2, key=-world.rank)
    assert (group.size, group.rank) == (2, 1 - world.rank // 2)
    assert group.all_reduce(torch.tensor([world.rank])).item() == 2 + 2 * (world.rank % 2)


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


@pytest.mark.parallel([2])
def test_a_message_of_the_wrong_size_is_an_error(world):
    if world.rank == 0:
        world.transport.send(torch.zeros(3), 1).wait()
    else:
        with pytest.raises(PeerError, match="rank 0 sent 12 bytes, not 16"):
            world.transport.receive(torch.empty(4), 0).wait()


@pytest.mark.parallel([2, 3])
def test_a_duplicate_serves_another_thread(world):
    """Both threads use the same ranks and tags at once."""
    other = world.transport.duplicate()
    world.transport.traffic.lap()
    with ThreadPoolExecutor(1) as thread:
        futures = [thread.submit(ring.all_reduce, other, torch.full((50_000,), 2.0)) for _ in range(20)]
        for _ in range(20):
            assert ring.all_reduce(world.transport, torch.ones(50_000))[0] == world.size
        assert all(future.result()[-1] == 2.0 * world.size for future in futures)
    assert other.traffic.sent_bytes == world.transport.traffic.lap().sent_bytes > 0


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
