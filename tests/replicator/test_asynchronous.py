"""Sync groups that do not wait for each other, and the rank that holds their parameters."""

from threading import Event

import pytest
import torch
from mpi4py import MPI
from torch import nn

from hpcopt import Replicator
from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World
from hpcopt.errors import PeerError
from tests.replicator.test_training import STEPS, train


def places(t, groups: int):
    r = Replicator(World(t), sync_groups=groups)
    return r.sync_group, r.replica_id, r.num_replicas_in_sync, r.num_sync_groups, r.serves


def test_who_is_where():
    workers = [(group, replica, 2, 3, False) for group in range(3) for replica in range(2)]
    assert run_ranks(7, lambda t: places(t, 3)) == [*workers, (0, 0, 2, 3, True)]


def test_one_group_trains_as_without_a_server():
    expected = run_ranks(2, lambda t: train(Replicator(World(t))))
    found = run_ranks(3, lambda t: train(Replicator(World(t), sync_groups=1)))
    for parameters, losses in found[:2]:
        assert torch.equal(parameters, expected[0][0]) and losses == expected[0][1]
    assert torch.equal(found[2][0], expected[0][0]) and found[2][1] == []


@pytest.mark.parallel([3, 4])
def test_under_mpi():
    """Also on a number of ranks that makes groups of one."""
    replicator = Replicator(sync_groups=MPI.COMM_WORLD.size - 1)
    parameters, losses = train(replicator, lr=0.02)
    replicator.world.require_same([parameters], "the parameters")
    assert replicator.staleness.total() == STEPS * replicator.num_sync_groups
    assert len(losses) == (0 if replicator.serves else STEPS)


def test_several_groups_end_with_the_same_parameters():
    def program(t):
        replicator = Replicator(World(t), sync_groups=2)
        return *train(replicator, lr=0.02), replicator.staleness

    found = run_ranks(5, program)
    for parameters, losses, staleness in found:
        assert torch.equal(parameters, found[0][0]) and parameters.isfinite().all()
        assert staleness == found[0][2] and staleness.total() == 2 * STEPS
        assert len(losses) == 0 or losses[-1] < losses[0]


def test_staleness_is_the_number_of_updates_that_came_between():
    quick_group_is_done = Event()

    def program(t):
        replicator = Replicator(World(t), sync_groups=2)
        p = nn.Parameter(torch.zeros(2))
        optimizer = replicator.wrap_optimizer(torch.optim.SGD([p], 1.0))

        def step(_):
            optimizer.zero_grad()
            p.sum().backward()
            if replicator.sync_group == 1:
                quick_group_is_done.wait()
            optimizer.step()

        def batches():
            yield from range(3 if replicator.sync_group == 0 else 1)  # nor need groups have as many
            if not replicator.serves and replicator.sync_group == 0:
                quick_group_is_done.set()

        replicator.run(step, batches())
        return replicator.staleness, p.tolist()

    assert run_ranks(3, program) == [({0: 3, 3: 1}, [-4, -4])] * 3


def test_a_schedule_in_the_groups_reaches_the_server():
    def program(t):
        replicator = Replicator(World(t), sync_groups=1)
        p = nn.Parameter(torch.zeros(1))
        optimizer = replicator.wrap_optimizer(torch.optim.SGD([p], 1.0))
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)

        def step(_):
            optimizer.zero_grad()
            p.sum().backward()
            optimizer.step()
            schedule.step()

        replicator.run(step, range(3))
        return p.item()

    assert run_ranks(3, program) == [-1.75] * 3


def failing(t, who: int):
    """What a rank's run ends with when one rank, or the server, fails."""
    replicator = Replicator(World(t), sync_groups=2)
    p = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([p], 1.0)
    if replicator.serves and who == t.rank:
        optimizer.register_step_pre_hook(lambda *_: 1 / 0)
    replicator.wrap_optimizer(optimizer)

    def step(batch):
        if t.rank == who and batch == 2:
            raise ValueError("boom")
        p.sum().backward()
        replicator.all_sum(1)
        optimizer.step()

    with pytest.raises((PeerError, ValueError, ZeroDivisionError)) as caught:
        replicator.run(step, iter(int, 1) if t.rank // 2 != who // 2 else range(10))
    return f"{caught.type.__name__}: {caught.value}"


def test_a_rank_that_fails_ends_all_groups():
    """The other group would go on for ever."""
    found = run_ranks(5, lambda t: failing(t, 1))
    assert found[1] == "ValueError: boom"
    for rank in (0, 2, 3, 4):
        assert "ranks [1] 'left the asynchronous run with ValueError: boom" in found[rank]


def test_a_server_that_fails_ends_all_groups():
    *groups, server = run_ranks(5, lambda t: failing(t, 4))
    assert server.startswith("ZeroDivisionError")
    for end in groups:
        assert "ranks [4] 'left the asynchronous run with ZeroDivisionError" in end
