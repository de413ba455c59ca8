"""Data parallelism against one process that sees the whole batch."""

import math

import pytest
import torch
from torch import nn

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World, alone
from hpcopt.compress import QSGD
from hpcopt.errors import CheckpointError, JobError
from hpcopt.exchange import Exchange, NativeConfig, RingConfig, TwoPhaseConfig, VoteConfig
from hpcopt.optim import ScheduleConfig
from hpcopt.optim.first_order import AdamWConfig, SgdConfig
from hpcopt.optim.signum import SignumConfig
from hpcopt.shapes.context import Context
from hpcopt.shapes.solver import Task
from hpcopt.solvers.data_parallel import DataParallel, DataParallelConfig
from hpcopt.testing.problem import Problem, flat
from hpcopt.testing.solver import Trial

STEPS, PROBLEM, RING = 6, Problem(), RingConfig()


def solver(world: World, config: DataParallelConfig, model: nn.Module | None = None, exchange=RING) -> DataParallel:
    task = PROBLEM.task() if model is None else Task(model, PROBLEM.task().loss)
    return config.build(task, Context(world=world, exchange=exchange, steps=STEPS))


def parameters_after(size: int, config: DataParallelConfig, exchange=RING) -> list[torch.Tensor]:
    return [run.parameters for run in Trial(config, PROBLEM, exchange).run(size, STEPS, total=STEPS)]


@pytest.mark.parametrize("exchange", [RingConfig(), NativeConfig()])
@pytest.mark.parametrize("optimizer", [SgdConfig(lr=0.2, weight_decay=0.01), AdamWConfig(lr=0.01)])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 8])
def test_any_number_of_ranks_takes_the_serial_path(size, optimizer, exchange):
    config = DataParallelConfig(optimizer=optimizer)
    serial = PROBLEM.task()
    reference = optimizer.build(serial.model.parameters())
    for batch in PROBLEM.batches(0, 1, STEPS):
        reference.zero_grad()
        serial.loss(serial.model, batch).backward()
        reference.step()
    expected = flat(serial.model)
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
    task = PROBLEM.task()
    model = task.model
    names = [name for name, _ in model.named_parameters()]
    momenta = [{name: torch.zeros_like(p) for name, p in model.named_parameters()} for _ in range(size)]
    for step in range(STEPS):
        signs = dict.fromkeys(names, 0)
        for rank in range(size):
            (batch,) = PROBLEM.batches(rank, size, 1, step)
            model.zero_grad()
            (task.loss(model, batch) * batch.weight).backward()
            for name, p in model.named_parameters():
                momenta[rank][name] = 0.8 * momenta[rank][name] + 0.2 * p.grad
                casting = 2 if size % 2 == 0 and rank == step % size else 1  # a second vote decides ties
                signs[name] += casting * torch.where(momenta[rank][name] < 0, -1, 1)
        with torch.no_grad():
            for name, p in model.named_parameters():
                p -= 0.01 * torch.where(signs[name] < 0, -1.0, 1.0)
    expected = flat(model)
    for result in parameters_after(size, config, VoteConfig()):
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("weights", [None, (1, 2, 2)])
def test_a_step_from_packed_outcomes_is_that_from_signs_bit_for_bit(weights):
    """The solver against the long way: outcomes unpacked into gradients, then Signum on them."""
    optimizer = SignumConfig(lr=0.01, momentum=0.8, weight_decay=0.1)
    tasks = [PROBLEM.task() for _ in range(3)]

    def unfused(transport):
        model, loss = tasks[transport.rank].model, tasks[transport.rank].loss
        exchange = Exchange(World(transport), model.named_parameters(), VoteConfig(weights=weights, momentum=0.8))
        signum = optimizer.model_copy(update={"momentum": 0.0}).build(list(model.parameters()))
        for batch in PROBLEM.batches(transport.rank, 3, STEPS):
            exchange.zero()
            (loss(model, batch) * batch.weight).backward()
            exchange.finish()
            signum.step()
        return flat(model)

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
        solver(alone(), config, exchange=VoteConfig(momentum=0.5))


def test_the_losses_of_the_ranks_add_up():
    serial, (batch,) = PROBLEM.task(), PROBLEM.batches(0, 1, 1)
    (total,) = Trial(DataParallelConfig(), PROBLEM).run(3, 1)[0].losses
    assert total == pytest.approx(serial.loss(serial.model, batch).item(), rel=1e-6)


def test_clipping_bounds_the_summed_gradient():
    s = solver(alone(), DataParallelConfig(clip_norm=1e-3, optimizer=SgdConfig(lr=1.0, momentum=0)))
    before = flat(s.model)
    s.step(PROBLEM.batches(0, 1, 1)[0])
    moved = flat(s.model) - before
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
    trial = Trial(DataParallelConfig(optimizer=optimizer), PROBLEM)
    first = trial.run(1, 3, total=STEPS)
    second = trial.run(1, STEPS - 3, first=3, saved=first, total=STEPS)
    assert torch.equal(second[0].parameters, trial.run(1, STEPS, total=STEPS)[0].parameters)


def test_a_state_of_another_model_is_refused():
    saved = solver(alone(), DataParallelConfig(), nn.Linear(3, 2)).state_dict()
    with pytest.raises(CheckpointError, match="size mismatch"):
        solver(alone(), DataParallelConfig(), nn.Linear(4, 2)).load_state_dict(saved, [{}])


@pytest.mark.parametrize(
    ("factor", "rate"), [(1e300, None), (-1e300, None), (10**400, None), (2.0, 0.2), (math.inf, math.inf)]
)
def test_a_learning_rate_is_a_float32(factor, rate):
    """Beyond, torch raises; by Inf a run diverges, as by any rate that is too large."""

    class Mine(ScheduleConfig):
        def decayed(self, progress, rest):
            return factor

    config = DataParallelConfig(optimizer=SgdConfig(lr=0.1), schedule=Mine())
    if rate is not None:
        assert config.learning_rate(0, 1) == rate
        return
    with pytest.raises(JobError, match="is beyond all float32"):
        config.learning_rate(0, 1)


def test_the_runs_seed_decides_what_a_codec_draws():
    """The same model and batches; the loss has no draws of its own."""
    exchange = TwoPhaseConfig(codec=QSGD(bits=2))

    def after(seed: int) -> torch.Tensor:
        tasks = [PROBLEM.task() for _ in range(2)]

        def program(transport):
            world = World(transport)
            context = Context(world=world, exchange=exchange, steps=STEPS, run_seed=seed)
            made = DataParallelConfig().build(tasks[world.rank], context)
            for batch in PROBLEM.batches(world.rank, 2, STEPS):
                made.step(batch)
            return flat(made.model)

        return run_ranks(2, program)[0]

    once, again, other = after(1), after(1), after(2)
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
