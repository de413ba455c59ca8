"""Leader SGD, against its equations in one process, and the properties that its paper names."""

import threading

import pytest
import torch
from torch import nn

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World
from hpcopt.compress import QSGD
from hpcopt.errors import DivergedError
from hpcopt.optim import SgdConfig
from hpcopt.shapes.batch import TensorBatch
from hpcopt.shapes.context import Context
from hpcopt.shapes.solver import Task
from hpcopt.solvers.leader.level import BROKEN, Level, leader_of
from hpcopt.solvers.leader.solver import LeaderConfig
from hpcopt.testing.problem import flat
from hpcopt.testing.solver import Trial, check_other_ranks, check_resume

RATE, PULL, STEPS = 0.1, 0.2, 10
PLAIN = SgdConfig(lr=RATE, momentum=0)


class Point(nn.Module):
    """Three parameters x, and the loss |x - c|^2 / 2 of a batch's c."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.linspace(0, 1, 3))


def loss(model: nn.Module, batch: TensorBatch) -> torch.Tensor:
    return (model.x - batch.tensors["c"]).square().sum() / 2


def batch(centre: float, size: int) -> TensorBatch:
    return TensorBatch({"c": torch.tensor([centre])}, torch.arange(1), size)


def centre(rank: int, step: int) -> float:
    """Such that another rank leads from time to time."""
    return [0.2, 0.9, -0.6, 1.5][(rank + step // 4) % 4]


def trained(size: int, config: LeaderConfig, broken: tuple[int, int] | None = None) -> list:
    """Each rank's own parameters at the end, what is stated, and its losses; a rank's become NaN before a step."""

    def program(transport):
        world = World(transport)
        solver = config.build(Task(Point(), loss), Context(world=world, steps=STEPS))
        losses = []
        for step in range(STEPS):
            if broken == (world.rank, step):
                with torch.no_grad():
                    solver.model.x[1] = torch.nan
            losses.append(solver.step(batch(centre(world.rank, step), size)).loss)
        own = flat(solver.model)
        solver.gather()
        return own, flat(solver.model), losses

    return run_ranks(size, program)


def simulated(size: int, config: LeaderConfig) -> list[torch.Tensor]:
    """All ranks' parameters by the equations, groups of ranks side by side."""
    x = torch.linspace(0, 1, 3).repeat(size, 1)
    losses = [[] for _ in range(size)]
    momentum = torch.zeros(size, 3)
    group = config.group or size
    levels = [(config.every, config.pull, [list(range(k, k + group)) for k in range(0, size, group)])]
    if group < size:
        levels.append((config.global_every, config.global_pull, [list(range(size))]))
    target = [[None] * size for _ in levels]
    for step in range(STEPS):
        gradient = torch.stack([x[r] - centre(r, step) for r in range(size)])
        for r in range(size):
            losses[r].append(float(gradient[r].square().sum() / 2))
        pulls = [
            sum((pull * (x[r] - target[k][r]) for k, (_, pull, _) in enumerate(levels) if target[k][r] is not None), 0)
            for r in range(size)
        ]
        for r in range(size):
            g = gradient[r] + (pulls[r] if config.form == "gradient" else 0)
            momentum[r] = config.optimizer.momentum * momentum[r] + g
            x[r] -= RATE * momentum[r] + (pulls[r] if config.form == "step" else 0)
        before = x.clone()
        for k, (every, pull, groups) in enumerate(levels):
            for members in groups if (step + 1) % every == 0 else ():
                means = {r: sum(losses[r][-config.window :]) / len(losses[r][-config.window :]) for r in members}
                leader = min(members, key=lambda r: means[r])
                for r in members:
                    target[k][r] = None if r == leader else before[leader].clone()
                    if r != leader and config.form == "round":
                        x[r] += pull * (before[leader] - before[r])
    return list(x)


@pytest.mark.parametrize("size", [1, 3, 4])
@pytest.mark.parametrize("form", ["round", "step", "gradient"])
def test_one_leader_by_the_equations(size, form):
    """Stochastic, and with momentum on the pull."""
    optimizer = SgdConfig(lr=RATE, momentum=0.5 if form == "gradient" else 0)
    config = LeaderConfig(every=2, pull=PULL, form=form, window=2, optimizer=optimizer)
    for (own, _, _), expected in zip(trained(size, config), simulated(size, config), strict=True):
        torch.testing.assert_close(own, expected)


def test_leaders_of_groups_and_one_of_all_by_the_equations():
    config = LeaderConfig(every=2, global_every=4, pull=PULL, global_pull=0.3, group=2, window=3, optimizer=PLAIN)
    for (own, _, _), expected in zip(trained(4, config), simulated(4, config), strict=True):
        torch.testing.assert_close(own, expected)


def test_on_a_convex_function_a_pull_raises_no_loss_and_leaves_the_leader():
    """``f((1 - c) x + c x~) <= f(x)``, where f(x~) is the least; all see one f."""
    torch.manual_seed(0)
    a = torch.randn(6, 5)
    values = [torch.randn(5) * (1 + rank) for rank in range(4)]

    def f(x):
        return float((a @ x).square().sum() + (x - 1).abs().sum())

    def program(transport):
        x = values[transport.rank].clone()
        level = Level(World(transport), torch.zeros(5), every=1, pull=0.3, codec=LeaderConfig().codec, seed=0)
        level.announce(0, f(x), x)
        return level.leader, level.pulls, x + 0.3 * (level.target - x), level.target

    best = min(range(4), key=lambda rank: f(values[rank]))
    for rank, (leader, pulls, pulled, target) in enumerate(run_ranks(4, program)):
        assert leader == best and pulls == (rank != best) and torch.equal(target, values[best])
        assert f(pulled) <= f(values[rank]) * (1 + 1e-6)


def test_where_all_agree_a_pull_changes_nothing():
    def program(transport, config):
        world = World(transport)
        solver = config.build(Task(Point(), loss), Context(world=world, steps=STEPS))
        for _ in range(60):
            solver.step(batch(0.7, transport.size))
        return flat(solver.model)

    strong, seldom = (LeaderConfig(every=every, optimizer=PLAIN) for every in (1, 61))
    pulled, alone = (run_ranks(3, lambda t, config=config: program(t, config)) for config in (strong, seldom))
    for x, y in zip(pulled, alone, strict=True):
        torch.testing.assert_close(x, torch.full((3,), 0.7), rtol=0, atol=2e-3)
        torch.testing.assert_close(x, y, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("losses", "leader"),
    [
        ([0.2, 0.1, 0.1], 1),
        ([float("nan"), 3.0, BROKEN], 1),
        ([BROKEN, float("nan")], None),
        ([-1.0, float("-inf"), 0.0], 0),
    ],
)
def test_of_equal_losses_the_lowest_rank_leads_and_one_that_is_not_finite_never(losses, leader):
    assert leader_of(losses) == leader


def test_a_rank_that_is_not_finite_never_leads_and_begins_anew():
    """Rank 2 has the smallest losses, until its parameters are NaN."""
    config = LeaderConfig(every=2, window=2, optimizer=PLAIN, not_finite="leave_out")
    for rank, (own, stated, losses) in enumerate(trained(3, config, broken=(2, 4))):
        assert own.isfinite().all() and stated.isfinite().all()
        assert [step for step, each in enumerate(losses) if each is None] == ([4, 5] if rank == 2 else [])


def test_a_rank_that_is_not_finite_ends_all_and_is_named():
    with pytest.raises(DivergedError, match=r"after step 6 the parameters of ranks \[2\]") as caught:
        trained(3, LeaderConfig(every=2, optimizer=PLAIN), broken=(2, 5))
    assert caught.value.on_every_rank


def test_a_straggler_holds_the_others_no_longer_than_its_round():
    """Rank 1 begins a round only when rank 0 has done all of that round's own steps."""
    config = LeaderConfig(every=3, optimizer=PLAIN)
    done = [threading.Event() for _ in range(4)]

    def program(transport):
        world = World(transport)
        solver = config.build(Task(Point(), loss), Context(world=world, steps=12))
        for step in range(12):
            if world.rank == 1 and step % 3 == 0:
                assert done[step // 3].wait(60)
            if world.rank == 0 and step % 3 == 2:  # the last before they meet
                done[step // 3].set()
            solver.step(batch(0.5, 2))

    run_ranks(2, program)


def test_bytes_are_the_losses_and_one_ranks_parameters():
    """8 (P - 1) of every rank; 4 d, or the codec's payload, of the leader."""
    n = flat(Trial(LeaderConfig()).problem.model()).numel()
    for codec, payload_bytes in ((LeaderConfig().codec, 4 * n), (QSGD(bits=4), QSGD(bits=4).max_bytes(n))):
        runs = Trial(LeaderConfig(every=5, codec=codec)).run(3, 5)
        assert [run.sent_bytes[:4] for run in runs] == [[0] * 4] * 3
        assert sorted(run.sent_bytes[4] for run in runs) == [16, 16, 16 + payload_bytes]


def test_a_lossy_leader_comes_ever_nearer():
    """The codec has what the parameters differ by from what all have of it."""
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))

    def program(transport):
        world = World(transport)
        level = Level(world, torch.zeros(1000), every=1, pull=0.5, codec=QSGD(bits=4), seed=7)
        errors = []
        for step in range(4):
            level.announce(step, float(1 - world.rank), x)
            errors.append(float((level.target - x).norm() / x.norm()))
        return errors, level.target

    results = run_ranks(2, program)
    assert torch.equal(results[0][1], results[1][1])
    assert results[0][0] == sorted(results[0][0], reverse=True) and results[0][0][-1] < 1e-2


def test_groups_resume_and_reshard():
    trial = Trial(LeaderConfig(every=2, global_every=4, group=2, form="gradient", codec=QSGD(bits=8)))
    check_resume(trial, 4)
    for after in (3, 5):
        check_other_ranks(trial, 4, after)


def test_periods_must_fit():
    with pytest.raises(ValueError, match="no multiple"):
        LeaderConfig(every=3, global_every=8)
