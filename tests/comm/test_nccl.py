"""NCCL's transport: what it does with tensors of a device, over gloo and with all tensors taken for such; and that it
refuses machines without GPUs.
"""

import pytest
import torch
import torch.distributed as dist

from hpcopt.comm import dense, two_phase
from hpcopt.comm.mpi import MpiTransport
from hpcopt.comm.nccl import NcclTransport, joined, over_nccl
from hpcopt.comm.world import World
from hpcopt.compress import QSGD, TopK
from hpcopt.errors import LaunchError
from hpcopt.exchange import Exchange, TwoPhaseConfig
from hpcopt.testing.transport import check_transport


class Everywhere(NcclTransport):
    """Takes every tensor for one of a device."""

    def __init__(self, inner, group, slots=None):
        super().__init__(inner, group, slots)
        self._away = lambda x: True

    def split(self, color, key):
        return self._again(super().split(color, key))

    def duplicate(self):
        return self._again(super().duplicate())

    def _again(self, part):
        return Everywhere(part.inner, part._group, part.slots)


@pytest.fixture(scope="module")
def transport():
    world = World(MpiTransport())
    yield Everywhere(world.transport, joined(world, "gloo"))
    dist.destroy_process_group()


@pytest.mark.parallel([2, 3])
def test_the_contract(transport):
    check_transport(transport)


@pytest.mark.parallel([2, 3])
def test_sums_are_its_own_and_compressed_ones_go_by_its_slots(transport, monkeypatch):
    """No message is sent, and the bits are those of messages."""
    size, rank = transport.size, transport.rank
    everyones = [torch.randn(3000, generator=torch.Generator().manual_seed(r)) for r in range(size)]
    seeds = {"sender_seed": rank, "owner_seed": 9}
    expected = {}
    for codec in (QSGD(), TopK(fraction=0.1)):
        expected[codec] = two_phase.all_reduce(transport.inner, everyones[rank].clone(), codec, **seeds)
    for method in ("send", "receive"):
        monkeypatch.setattr(MpiTransport, method, lambda *_: pytest.fail("a message"))
    total = dense.all_reduce(transport, everyones[rank].clone())
    torch.testing.assert_close(total, torch.stack(everyones).sum(0))
    for codec, x in expected.items():
        assert torch.equal(two_phase.all_reduce(transport, everyones[rank].clone(), codec, **seeds), x)


@pytest.mark.parallel([2, 3])
def test_an_exchange_counts_what_it_sends(transport):
    p = torch.nn.Parameter(torch.zeros(3000))
    exchange = Exchange(World(transport), [("p", p)], TwoPhaseConfig(codec=QSGD()))
    transport.traffic.lap()
    exchange.zero()
    p.grad.fill_(1.0)
    exchange.finish()
    assert torch.allclose(p.grad, torch.full((3000,), float(transport.size)))
    sent_bytes = transport.traffic.lap().sent_bytes
    assert 3000 // 2 * (transport.size - 1) // transport.size < sent_bytes < 2 * 3000


@pytest.mark.parallel([1, 2, 3])
def test_without_gpus_every_rank_says_so_in_a_sentence(monkeypatch):
    world = World(MpiTransport())
    for available, reason in ((False, "was built without it"), (True, "no GPU is visible")):
        monkeypatch.setattr(dist, "is_nccl_available", lambda available=available: available)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
        with pytest.raises(LaunchError, match=rf'^(rank 0 on .*: )?\[run\] backend = "nccl" .*{reason}; use backend'):
            over_nccl(world)
