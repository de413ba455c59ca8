"""Measured numbers: the same on all ranks, and of the order of what this machine's memory allows."""

import math

import pytest
import torch

from hpcopt.comm import calibration
from hpcopt.comm.calibration import calibrate, codec_cost
from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World, connect
from hpcopt.compress import QSGD, Sign, TopK


def on_hosts(transport, hosts: list[str]) -> World:
    """A world whose ranks believe that they run on these hosts."""
    world = World(transport)
    distinct = list(dict.fromkeys(hosts))
    world.hosts, world.node, world.nodes = hosts, distinct.index(hosts[world.rank]), len(distinct)
    world.local_rank = hosts[: world.rank].count(hosts[world.rank])
    return world


@pytest.mark.parametrize("hosts", [["a"] * 3, ["a", "b", "c"], ["a", "a", "b", "b", "c"]])
def test_all_ranks_measure_the_same(hosts):
    def program(t):
        world = on_hosts(t, hosts)
        return calibrate(world, 0.2), codec_cost(world, QSGD(bits=4), False, 1 << 18, 0.1)

    results = run_ranks(len(hosts), program)
    assert all(result == results[0] for result in results)
    machine, codec = results[0]
    assert machine.nodes == tuple(sorted(set(hosts)).index(host) for host in hosts)
    assert (machine.inside.bytes_per_s < math.inf or machine.inside.start_s > 0) == (len(set(hosts)) < len(hosts))
    assert (machine.between.bytes_per_s < math.inf or machine.between.start_s > 0) == (len(set(hosts)) > 1)
    assert machine.reduce(1 << 20) > 0 and all(seconds > 0 for _, seconds in machine.native)
    assert [size for size, _ in machine.native] == list(calibration.ALL_REDUCES_BYTES[: len(machine.native)])
    assert codec.ratio == pytest.approx(8, rel=0.05)
    assert codec.encode(1 << 20) > 0 and codec.decode(1 << 20) > 0


def test_a_codec_is_measured_as_short_as_its_payloads_are():
    for codec, ratio in ((Sign(), 32), (TopK(fraction=0.01), 50)):
        cost = run_ranks(2, lambda t, codec=codec: codec_cost(World(t), codec, True, 1 << 20, 0.05))[0]
        assert cost.ratio == pytest.approx(ratio, rel=0.1)


def test_measuring_leaves_the_random_numbers_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    run_ranks(1, lambda t: (calibrate(World(t), 0.01), codec_cost(World(t), QSGD(), True, 4096, 0.01)))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parallel([2, 4])
def test_under_mpi():
    world = connect()
    machine = calibrate(world, 0.2)
    world.require_same([torch.tensor([machine.inside.start_s, machine.reduce.start_s])], "the rates")
    assert machine.inside(1 << 20) >= machine.inside(64) > 0  # on a busy machine a message costs its latency only
