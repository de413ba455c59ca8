"""The MPI and Horovod transports keep the contract that the loopback ranks keep, under a real mpirun."""

import pytest
import torch

from hpcopt.comm import doubling, ring
from hpcopt.comm.world import World, connect
from hpcopt.errors import UnsupportedError


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


@pytest.mark.parallel([2, 3, 4])
def test_collectives(world):
    check_collectives(world)


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
