"""A plan's one rank of P acts as if all others had brought the same."""

import torch

from hpcopt.comm.rehearsal import RehearsalTransport
from hpcopt.comm.world import World


def test_collectives_of_an_imagined_world():
    world = World(RehearsalTransport(5))
    assert (world.size, world.rank, len(world.hosts)) == (5, 0, 5)
    assert world.all_reduce(torch.tensor([2.0])).tolist() == [10]
    assert world.all_reduce(torch.tensor([2.0]), "max").tolist() == [2]
    assert world.broadcast(torch.ones(2)).tolist() == [1, 1]
    assert world.all_gather(torch.ones(2)).tolist() == [[1, 1]] * 5
    with world.together():
        pass
