"""M replicas of a batch's parts are one replica of the whole batch, and one step runs in every mode."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hpcopt import Replicator
from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World, alone
from hpcopt.compress import Half
from hpcopt.errors import JobError, UnsupportedError
from hpcopt.exchange import RingConfig
from hpcopt.testing.problem import flat
from tests.replicator import steps

STEPS, BATCH = 5, 128
LONG = 50_000  # values, which no longer travel as they are
ACCURACY = {torch.float64: 1e-12, torch.float32: 1e-6}


def train(replicator, dtype=torch.float64, batch: int = BATCH, lr: float = 0.1):
    model, step = steps.build(replicator, dtype, lr)
    losses = replicator.run(step, steps.batches(replicator, STEPS, batch, dtype))
    return flat(model), losses


def assert_like_one(found, dtype, batch: int = BATCH) -> None:
    """Bit-equal on all ranks, and what one replica finds."""
    expected, losses = train(Replicator(alone()), dtype, batch)
    for parameters, theirs in found:
        assert torch.equal(parameters, found[0][0]) and theirs == found[0][1]
    torch.testing.assert_close(found[0][0], expected, rtol=ACCURACY[dtype], atol=ACCURACY[dtype])
    assert found[0][1] == pytest.approx(losses, rel=ACCURACY[dtype])
    assert len(losses) == STEPS and losses[-1] < losses[0]


@pytest.mark.parametrize("dtype", ACCURACY, ids=str)
@pytest.mark.parametrize("size", [1, 2, 4, 64])
def test_parts_of_a_batch_are_the_batch(size, dtype):
    assert_like_one(run_ranks(size, lambda t: train(Replicator(World(t)), dtype)), dtype)


def test_an_odd_number():
    assert_like_one(run_ranks(3, lambda t: train(Replicator(World(t)), batch=126)), torch.float64, batch=126)


@pytest.mark.parallel([2, 3, 4])
def test_under_mpi():
    replicator = Replicator()
    parameters, losses = train(replicator, batch=120)
    everyones = replicator.all_gather(parameters)
    assert_like_one([(row, losses) for row in everyones], torch.float64, batch=120)
    results = replicator.map_gather([1, 2, 3, 4, 5], lambda n: torch.arange(n))
    assert [len(x) for x in results] == [1, 2, 3, 4, 5]


def test_a_coarse_exchange():
    """Gradients travel as the exchange says: here in bfloat16."""

    def program(t):
        replicator = Replicator(World(t))
        p = nn.Parameter(torch.zeros(LONG))
        optimizer = torch.optim.SGD([p], 1.0)
        assert replicator.wrap_optimizer(optimizer, RingConfig(codec=Half())) is optimizer
        replicator.world.traffic.lap()  # of the parameters to start from
        p.sum().backward()
        (p * torch.linspace(0, 1, LONG)).sum().backward()  # gradients of several backward passes add up
        optimizer.step()
        return p.detach(), replicator.world.traffic.sent_bytes

    (one, sent_bytes), (two, _) = run_ranks(2, program)
    exact = -1 - torch.linspace(0, 1, LONG)
    assert torch.equal(one, two) and not torch.equal(one, exact)
    torch.testing.assert_close(one, exact, rtol=2**-7, atol=0)
    assert sent_bytes < 1.1 * 2 * LONG


def test_replica_0_says_how_to_start_and_a_schedule_goes_on():
    def program(t):
        replicator = Replicator(World(t))
        p = nn.Parameter(torch.full((3,), float(t.rank + 7)))
        optimizer = replicator.wrap_optimizer(torch.optim.SGD([p], 1.0))
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
        for _ in range(2):
            optimizer.zero_grad()
            (p.sum() * (t.rank + 1)).backward()
            optimizer.step()
            schedule.step()
        return p.tolist()

    assert run_ranks(3, program) == [[7 - 2 - 1] * 3] * 3


def test_what_an_optimizer_cannot_have():
    replicator = Replicator(alone())
    optimizer = replicator.wrap_optimizer(torch.optim.SGD([nn.Parameter(torch.zeros(1))], 1.0))
    with pytest.raises(JobError, match="several gradients"):
        optimizer.step(lambda: None)
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
    with pytest.raises(UnsupportedError, match="wrap it when it has all"):
        optimizer.step()


def test_a_batch_that_cannot_be_dealt():
    def program(t):
        replicator = Replicator(World(t))
        assert replicator.per_replica_batch_size(12) == 4
        for batch, said in ((100, "99 or 102"), (2, "one of 3 can")):
            with pytest.raises(JobError, match=said):
                replicator.per_replica_batch_size(batch)

    run_ranks(3, program)


@pytest.mark.parametrize(
    ("size", "options", "said"),
    [
        (3, {"devices_per_replica": 2}, "start 2 or 4$"),
        (3, {"sync_groups": 3}, "2 ranks beside the server .* start 4$"),
        (3, {"sync_groups": 1, "devices_per_replica": 2}, "whole replicas"),
        (1, {"sync_groups": 0}, "begin at 1"),
    ],
)
def test_ranks_that_cannot_be_grouped(size, options, said):
    with pytest.raises(JobError, match=said):
        run_ranks(size, lambda t: Replicator(World(t), **options))


def two_devices(replicator):
    """A network whose second half lives on another device."""
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((8, 6), (3, 8))]
    devices = [replicator.logical_device(i) for i in range(2)]

    def layer(weight):
        linear = nn.Linear(*reversed(weight.shape), bias=False, dtype=torch.float64)
        linear.weight.data.copy_(weight)
        return linear

    halves = [device.build(lambda w=w: layer(w)) for device, w in zip(devices, weights, strict=True)]
    parameters = [p for half in halves for p in half.parameters()]
    optimizer = replicator.wrap_optimizer(torch.optim.SGD(parameters, 0.5))

    def step(batch):
        x, y = batch
        hidden = devices[0](lambda x: {"h": halves[0](x).tanh()}, x)
        logits = devices[1](lambda tree: halves[1](tree["h"]), hidden)
        loss = F.cross_entropy(logits, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(replicator.all_mean(loss.detach()))

    return step, parameters


@pytest.mark.parametrize("replicas", [1, 3])
def test_a_replica_of_two_ranks(replicas):
    def program(replicator):
        step, parameters = two_devices(replicator)
        losses = replicator.run(step, steps.batches(replicator, STEPS, 12))
        return losses, [p.detach() for p in parameters]

    losses, weights = program(Replicator(alone()))
    found = run_ranks(2 * replicas, lambda t: program(Replicator(World(t), devices_per_replica=2)))
    for rank, (theirs, parameters) in enumerate(found):
        assert theirs == pytest.approx(losses, rel=1e-12)
        (mine,) = parameters  # the other half is the other rank's
        torch.testing.assert_close(mine, weights[rank % 2], rtol=1e-12, atol=1e-12)
        assert torch.equal(mine, found[rank % 2][1][0])
