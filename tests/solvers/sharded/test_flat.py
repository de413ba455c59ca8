"""Where parameters lie, and whose they are."""

import pytest
import torch
from torch import nn

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World
from hpcopt.solvers.sharded.flat import Flat, balanced, spread

SHAPES = [(5, 7), (3,), (), (16, 16), (1, 2, 3)]


def parameters():
    return [nn.Parameter(torch.full(shape, float(i + 1))) for i, shape in enumerate(SHAPES)]


@pytest.mark.parametrize("cut", [True, False])
@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 8])
def test_every_value_is_one_ranks_and_stays_what_it_was(ranks, cut):
    ps = parameters()
    flat = Flat(ps, ranks, cut=cut)
    for i, p in enumerate(ps):
        assert bool((p == i + 1).all())
        parts = [flat.part(p, rank) for rank in range(ranks)]
        assert sorted(i for part in parts for i in range(part.start, part.stop)) == list(range(p.numel()))
        assert cut or sum(part.stop > 0 for part in parts) == 1
        p.detach().fill_(-1)
    assert set(flat.values.tolist()) <= {-1.0, 0.0}
    assert flat.segments[0].start == 0
    assert flat.segments[-1].stop == len(flat.values)


def test_even_segments_are_even():
    lengths = [s.stop - s.start for s in Flat(parameters(), 3, cut=True).segments]
    assert max(lengths) - min(lengths) <= 16


def test_whole_parameters_are_balanced_by_size():
    sizes = [[p.numel() for p in own] for own in balanced(parameters(), 3)]
    assert sizes == [[256], [35], [3, 1, 6]]


@pytest.mark.parametrize("messages", [True, False])
@pytest.mark.parametrize("cut", [True, False])
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_all_ranks_get_all_segments_for_the_planned_bytes(size, cut, messages):
    """Over messages, and by way of a library's all-gather."""

    def program(transport):
        world = World(transport)
        transport.point_to_point = messages
        ps = [nn.Parameter(torch.full(shape, float("nan"))) for shape in SHAPES]
        flat = Flat(ps, size, cut=cut)
        for i, p in enumerate(ps):
            p.detach().view(-1)[flat.part(p, world.rank)] = i
        before = world.traffic.sent_bytes
        spread(flat, world)
        assert all(bool((p == i).all()) for i, p in enumerate(ps))
        return not messages or world.traffic.sent_bytes - before == flat.sent_bytes(world.rank)

    assert all(run_ranks(size, program))
