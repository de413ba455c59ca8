"""Data parallelism against one process that sees the whole batch."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World, alone
from hpcopt.errors import CheckpointError, JobError
from hpcopt.exchange import Exchange, NativeConfig, RingConfig, VoteConfig
from hpcopt.optim.first_order import AdamWConfig, SgdConfig
from hpcopt.optim.signum import SignumConfig
from hpcopt.shapes.batch import TensorBatch
from hpcopt.shapes.context import Context
from hpcopt.shapes.solver import Task
from hpcopt.solvers.data_parallel import DataParallel, DataParallelConfig

STEPS, SAMPLES = 6, 11


def loss(model: nn.Module, batch: TensorBatch) -> torch.Tensor:
    return F.cross_entropy(model(batch.tensors["x"]), batch.tensors["y"])


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))


def batches(rank: int, size: int) -> list[TensorBatch]:
    generator = torch.Generator().manual_seed(1)
    result = []
    for _ in range(STEPS):
        x, y = torch.randn(SAMPLES, 5, generator=generator), torch.randint(3, (SAMPLES,), generator=generator)
        mine = torch.tensor_split(torch.arange(SAMPLES), size)[rank]
        result.append(TensorBatch({"x": x[mine], "y": y[mine]}, mine, SAMPLES))
    return result


def solver(world: World, config: DataParallelConfig, model: nn.Module, exchange=None) -> DataParallel:
    return config.build(Task(model, loss), Context(world=world, exchange=exchange or RingConfig(), steps=STEPS))


def parameters_after(size: int, config: DataParallelConfig, exchange=None) -> list[torch.Tensor]:
    models = [copy.deepcopy(network()) for _ in range(size)]

    def program(transport):
        s = solver(World(transport), config, models[transport.rank], exchange)
        for batch in batches(transport.rank, size):
            s.step(batch)
        return torch.cat([p.detach().reshape(-1) for p in s.model.parameters()])

    return run_ranks(size, program)


@pytest.mark.parametrize("exchange", [RingConfig(), NativeConfig()])
@pytest.mark.parametrize("optimizer", [SgdConfig(lr=0.2, weight_decay=0.01), AdamWConfig(lr=0.01)])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 8])
def test_any_number_of_ranks_takes_the_serial_path(size, optimizer, exchange):
    config = DataParallelConfig(optimizer=optimizer)
    serial = network()
    reference = optimizer.build(serial.parameters())
    for batch in batches(0, 1):
        reference.zero_grad()
        loss(serial, batch).backward()
        reference.step()
    expected = torch.cat([p.detach().reshape(-1) for p in serial.parameters()])
    results = parameters_after(size, config, exchange)
    torch.testing.assert_close(results[0], expected, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("accumulate", [2, 3, 20])
def test_micro_batches_change_nothing(accumulate):
    whole = parameters_after(2, DataParallelConfig())[0]
    torch.testing.assert_close(
        parameters_after(2, DataParallelConfig(accumulate=accumulate))[0], whole, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_a_vote_of_signum_is_its_paper(size):
    """Every rank's momentum by itself, the sign of the sum of signs (ties by turns), one step of that sign."""
    config = DataParallelConfig(optimizer=SignumConfig(lr=0.01, momentum=0.8))
    model = network()
    names = [name for name, _ in model.named_parameters()]
    momenta = [{name: torch.zeros_like(p) for name, p in model.named_parameters()} for _ in range(size)]
    for step in range(STEPS):
        signs = dict.fromkeys(names, 0)
        for rank in range(size):
            batch = batches(rank, size)[step]
            model.zero_grad()
            (loss(model, batch) * batch.weight).backward()
            for name, p in model.named_parameters():
                momenta[rank][name] = 0.8 * momenta[rank][name] + 0.2 * p.grad
                casting = 2 if size % 2 == 0 and rank == step % size else 1  # a second vote decides ties
                signs[name] += casting * torch.where(momenta[rank][name] < 0, -1, 1)
        with torch.no_grad():
            for name, p in model.named_parameters():
                p -= 0.01 * torch.where(signs[name] < 0, -1.0, 1.0)
    expected = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    for result in parameters_after(size, config, VoteConfig()):
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("weights", [None, (1, 2, 2)])
def test_a_step_from_packed_outcomes_is_that_from_signs_bit_for_bit(weights):
    """The solver against the long way: outcomes unpacked into gradients, then Signum on them."""
    optimizer = SignumConfig(lr=0.01, momentum=0.8, weight_decay=0.1)
    models = [network() for _ in range(3)]

    def unfused(transport):
        model = models[transport.rank]
        exchange = Exchange(World(transport), model.named_parameters(), VoteConfig(weights=weights, momentum=0.8))
        signum = optimizer.model_copy(update={"momentum": 0.0}).build(list(model.parameters()))
        for batch in batches(transport.rank, 3):
            exchange.zero()
            (loss(model, batch) * batch.weight).backward()
            exchange.finish()
            signum.step()
        return torch.cat([p.detach().reshape(-1) for p in model.parameters()])

    expected = run_ranks(3, unfused)[0]
    for result in parameters_after(3, DataParallelConfig(optimizer=optimizer), VoteConfig(weights=weights)):
        assert torch.equal(result, expected)


def test_a_vote_asks_for_signum():
    assert "signs" not in DataParallelConfig().needs
    assert "signs" not in DataParallelConfig(optimizer=SignumConfig(), clip_norm=1.0).needs
    assert DataParallelConfig(optimizer=SignumConfig()).needs == {"sums", "signs"}


def test_momentum_stands_once():
    config = DataParallelConfig(optimizer=SignumConfig(momentum=0.9))
    with pytest.raises(JobError, match="not in both"):
        solver(alone(), config, network(), VoteConfig(momentum=0.5))


def test_the_losses_of_the_ranks_add_up():
    models = [network() for _ in range(3)]

    def program(transport):
        model = models[transport.rank]
        return solver(World(transport), DataParallelConfig(), model).step(batches(transport.rank, 3)[0]).loss

    assert sum(run_ranks(3, program)) == pytest.approx(loss(network(), batches(0, 1)[0]).item(), rel=1e-6)


def test_clipping_bounds_the_summed_gradient():
    model = network()
    s = solver(alone(), DataParallelConfig(clip_norm=1e-3, optimizer=SgdConfig(lr=1.0, momentum=0)), model)
    before = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    s.step(batches(0, 1)[0])
    moved = torch.cat([p.detach().reshape(-1) for p in model.parameters()]) - before
    assert moved.norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_ranks_start_from_rank_0():
    def program(transport):
        model = nn.Linear(2, 2)
        nn.init.constant_(model.weight, transport.rank + 1.0)
        solver(World(transport), DataParallelConfig(), model)
        return model.weight[0, 0].item()

    assert run_ranks(3, program) == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("optimizer", [SgdConfig(), AdamWConfig()])
def test_a_restart_continues_bit_for_bit(optimizer):
    config = DataParallelConfig(optimizer=optimizer)
    straight, first = solver(alone(), config, network()), solver(alone(), config, network())
    for batch in batches(0, 1):
        straight.step(batch)
    for batch in batches(0, 1)[:3]:
        first.step(batch)
    second = solver(alone(), config, network())
    second.load_state_dict(copy.deepcopy(first.state_dict()), [copy.deepcopy(first.rank_state_dict())])
    for batch in batches(0, 1)[3:]:
        second.step(batch)
    for a, b in zip(straight.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_state_of_another_model_is_refused():
    saved = solver(alone(), DataParallelConfig(), nn.Linear(3, 2)).state_dict()
    with pytest.raises(CheckpointError, match="size mismatch"):
        solver(alone(), DataParallelConfig(), nn.Linear(4, 2)).load_state_dict(saved, [{}])
