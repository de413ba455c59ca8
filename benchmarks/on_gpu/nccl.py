"""NCCL, with one rank, since it refuses two on a card: whether it starts, brings what it should, keeps to the streams,
and how fast it is. In a rehearsal gloo stands in its place.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist

from benchmarks.on_gpu.nets import small_images
from benchmarks.on_gpu.rig import Rig, Row, alike
from hpcopt.comm import slots
from hpcopt.comm.nccl import NcclTransport, joined, over_nccl
from hpcopt.comm.staged import StagedTransport
from hpcopt.comm.traffic import Traffic
from hpcopt.comm.world import World, alone
from hpcopt.compress import QSGD
from hpcopt.exchange import NativeConfig
from hpcopt.optim import SgdConfig
from hpcopt.solvers.data_parallel import DataParallelConfig


class Gloo(StagedTransport):
    """A process group that takes tensors of any device."""

    def among(self, members: Sequence[int], traffic: Traffic | None = None) -> "Gloo":
        """As a process group's."""
        return Gloo(self.inner.among(members, traffic))


def rows(rig: Rig) -> Iterator[Row]:
    """Of one rank."""
    plain = alone()
    transport = _transport(rig, plain)
    yield Row("one rank of it", "found itself")
    yield alike("what its collectives bring", all(_collectives(rig, transport)))
    x, codec = rig.draw(rig.size(100_003, 1003)), QSGD()
    expected = codec.decode(codec.encode(x, seed=9), x.numel())
    summed = slots.all_reduce(transport, x.clone(), codec, 1, 9, None, None, 0)
    yield alike("a sum in two phases by its slots", torch.equal(summed, expected))
    losses = [_losses(rig, world) for world in (World(transport), plain)]
    yield alike("losses with its sums beside backward", losses[0] == losses[1])
    n = rig.size(1 << 26, 1 << 10)
    values = rig.draw(n // 4)
    _, took_s = rig.beside(lambda: None, lambda: transport.all_reduce(values))
    yield Row("all-reduce of one rank", 1e-9 * n / took_s, "GB/s")
    dist.destroy_process_group()


def _transport(rig: Rig, world: World) -> NcclTransport:
    if not rig.rehearsed:
        return over_nccl(world)
    return NcclTransport(world.transport, Gloo(joined(world, "gloo")))


def _collectives(rig: Rig, transport: NcclTransport) -> Iterator[bool]:
    """Whether each gives one rank what it brought."""
    for n in (1, 1000, rig.size(1 << 22, 5000)):
        x = rig.draw(1, n)
        summed, told, gathered, swapped = x.clone(), x.clone(), torch.empty_like(x), torch.empty_like(x)
        transport.all_reduce(summed)
        transport.broadcast(told)
        transport.all_gather(x[0], gathered)
        transport.all_to_all(x, swapped)
        yield from (torch.equal(x, found) for found in (summed, told, gathered, swapped))


def _losses(rig: Rig, world: World) -> list[float]:
    net = small_images(tiny=rig.rehearsed)
    solver = net.solver(DataParallelConfig(optimizer=SgdConfig(lr=0.05)), world, rig.device, NativeConfig())
    return [float(solver.step(net.part(step, world, rig.device)).loss or 0.0) for step in range(rig.size(20, 2))]
