"""Local steps, against a serial simulation of all ranks that knows nothing of exchanges."""

import copy

import pytest
import torch
from torch import nn

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.rehearsal import RehearsalTransport
from hpcopt.comm.world import World
from hpcopt.compress import ChunkedTopK
from hpcopt.errors import DivergedError, JobError
from hpcopt.exchange import RingConfig, TwoPhaseConfig
from hpcopt.optim import SgdConfig
from hpcopt.shapes.context import Context
from hpcopt.solvers.data_parallel import DataParallelConfig
from hpcopt.solvers.local import pace
from hpcopt.solvers.local.solver import LocalConfig
from hpcopt.solvers.local.steps import LocalSteps, LocalStepsConfig
from hpcopt.solvers.mixing import MixingConfig
from hpcopt.store.tables import usable
from hpcopt.testing.problem import Problem, flat
from hpcopt.testing.solver import Trial, check_equal_on_all_ranks, check_other_ranks, check_resume

MEAN = SgdConfig(lr=1, momentum=0)
NESTEROV = SgdConfig(lr=0.7, momentum=0.9, nesterov=True)
RING = RingConfig()
SIZES, RATE, STEPS = (3, 2), 0.1, 13
LATE = LocalConfig(every=4, every_at_end=6, fragments=2, delay=3, keep=0.25, outer=NESTEROV)


class Quadratic(nn.Module):
    """Two parameters x, and the loss |x - c|^2 / 2 of a rank's own c, all of whose averages are known."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Parameter(torch.linspace(0, 1, n)) for n in SIZES)

    def loss(self, centre: float) -> torch.Tensor:
        return sum((p - centre).square().sum() / 2 for p in self.parameters())


def trained(size: int, config: LocalStepsConfig, steps: int = STEPS, exchange=RING, broken=()) -> list:
    """What ranks with the centres 0, 1, ... end with: stated parameters, and their own; a broken rank's become NaN at a
    step.
    """

    def program(transport):
        model, world = Quadratic(), World(transport)
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
        local = LocalSteps(
            model, optimizer, config, world=world, exchange=None if config.gossip else exchange, steps=steps
        )
        left_out = []
        for step in range(1, steps + 1):
            optimizer.zero_grad()
            model.loss(float(world.rank)).backward()
            optimizer.step()
            if (world.rank, step) in broken:
                with torch.no_grad():
                    model.second.fill_(torch.nan)
            if local.step():
                left_out.append(local.left_out)
        own = flat(model)
        with local.stated():
            return flat(model), own, left_out

    return run_ranks(size, program)


def simulated(size: int, config: LocalStepsConfig, steps: int = STEPS) -> torch.Tensor:
    """The outer parameters after so many steps: one process holds all ranks, and torch's SGD is the outer optimizer."""
    outer = [p.detach().clone().requires_grad_() for p in Quadratic().parameters()]
    own = [[p.detach().clone() for p in outer] for _ in range(size)]
    parts = [[0], [1]] if config.fragments == 2 else [[0, 1]]
    settings = {"lr": config.outer.lr, "momentum": config.outer.momentum, "nesterov": config.outer.nesterov}
    optimizers = [torch.optim.SGD([outer[k] for k in part], **settings) for part in parts]
    begin, length, flying = 0, config.every, []

    def land(until):
        while flying and flying[0][0] <= until:
            _, part, deltas = flying.pop(0)
            for k, delta in zip(parts[part], deltas, strict=True):
                outer[k].grad = delta
            optimizers[part].step()
            for rank in range(size):
                for k in parts[part]:
                    own[rank][k] = config.keep * own[rank][k] + (1 - config.keep) * outer[k].detach()

    for step in range(1, steps + 1):
        for rank in range(size):
            own[rank] = [x - RATE * (x - rank) for x in own[rank]]
        if step == steps:
            land(steps + config.delay)
        for part, members in enumerate(parts):
            if step == steps or step == begin + -(-(part + 1) * length // len(parts)):
                deltas = [sum(outer[k].detach() - own[r][k] for r in range(size)) / size for k in members]
                flying.append((step + config.delay, part, deltas))
        land(steps + config.delay if step == steps else step)
        if step == begin + length:
            begin, length = step, config.length(step, steps)
    return torch.cat([p.detach() for p in outer])


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize(
    "config",
    [
        LocalStepsConfig(every=4, outer=MEAN),
        LocalStepsConfig(every=5, outer=NESTEROV),
        LocalStepsConfig(every=4, every_at_end=8, outer=NESTEROV),
        LocalStepsConfig(every=4, outer=MEAN, delay=2),
        LATE,
    ],
    ids=["mean", "nesterov", "growing", "late", "fragments"],
)
def test_it_is_the_serial_simulation(size, config):
    """A mean that lands d steps late, among them, is the serial run's that is used d steps late."""
    expected = simulated(size, config)
    for stated, own, _ in trained(size, config):
        torch.testing.assert_close(stated, expected, rtol=1e-5, atol=1e-6)
        if not config.keep:
            torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-6)


def test_rounds_of_one_step_with_the_plain_mean_are_data_parallel():
    """Also where ranks' shares of a batch differ."""
    rate = SgdConfig(lr=0.3, momentum=0)
    local = Trial(LocalConfig(every=1, optimizer=rate, outer=MEAN)).run(3, 9)
    parallel = Trial(DataParallelConfig(optimizer=rate)).run(3, 9)
    torch.testing.assert_close(local[0].parameters, parallel[0].parameters, rtol=0, atol=1e-6)
    torch.testing.assert_close(torch.tensor(local[0].losses), torch.tensor(parallel[0].losses), rtol=1e-6, atol=0)


def test_many_steps_end_in_the_mean_of_what_each_rank_wants():
    for stated, _, _ in trained(4, LocalStepsConfig(every=150, outer=MEAN), steps=300):
        torch.testing.assert_close(stated, torch.full((5,), 1.5), rtol=0, atol=1e-4)


def test_elastic_averaging_is_a_setting():
    """EASGD (Zhang et al. 2015, arXiv:1412.6651), its pull towards the centre as it has become: ranks keep .9 of their
    own, and the centre takes .4 of the way to their mean.
    """
    config = LocalStepsConfig(every=2, keep=0.9, outer=SgdConfig(lr=0.4, momentum=0))
    start = flat(Quadratic())
    centre, own = start.clone(), [start.clone() for _ in range(3)]
    for step in range(1, 9):
        own = [x - RATE * (x - rank) for rank, x in enumerate(own)]
        if step % 2 == 0:
            centre += 0.4 * (sum(own) / 3 - centre)
            own = [0.9 * x + 0.1 * centre for x in own]
    for rank, (stated, mine, _) in enumerate(trained(3, config, steps=8)):
        torch.testing.assert_close(stated, centre)
        torch.testing.assert_close(mine, own[rank])


@pytest.mark.parametrize("fragments", [1, 2])
def test_a_rank_that_is_not_finite_is_left_out_and_begins_anew(fragments):
    config = LocalStepsConfig(every=4, fragments=fragments, outer=MEAN, not_finite="leave_out")
    results = trained(3, config, steps=12, broken={(1, 3)})
    whole = trained(3, config, steps=12)
    for (stated, own, left_out), (_, _, none) in zip(results, whole, strict=True):
        assert left_out[fragments - 1] == [1] and sum(map(bool, left_out)) == 1 and not any(none)
        assert stated.isfinite().all() and own.isfinite().all()
        assert torch.equal(stated, results[0][0])
    outer = flat(Quadratic())
    if fragments == 1:  # of ranks 0 and 2 in the first round, of all three in the others
        for centre in (1.0, 1.0, 1.0):
            outer = centre + (1 - RATE) ** 4 * (outer - centre)
        torch.testing.assert_close(results[0][0], outer)


def test_a_rank_that_is_not_finite_ends_all_and_is_named():
    with pytest.raises(DivergedError, match=r"after step 4 the parameters of ranks \[1\] are not finite") as caught:
        trained(3, LocalStepsConfig(every=4), broken={(1, 3)})
    assert caught.value.on_every_rank


def test_no_rank_is_finite():
    with pytest.raises(DivergedError, match="no rank's parameters are finite"):
        trained(2, LocalStepsConfig(every=4, not_finite="leave_out"), broken={(0, 3), (1, 4)})


def test_a_job_goes_on_without_the_loss_of_a_rank_that_is_left_out():
    """Its own features are NaN in the second step."""
    config, problem = LocalConfig(every=2, not_finite="leave_out", optimizer=SgdConfig(lr=0.1)), Problem()

    def program(transport):
        world = World(transport)
        solver = config.build(problem.task(), Context(world=world, exchange=RingConfig(), steps=6))
        told = []
        for step, batch in enumerate(problem.batches(world.rank, 3, 6)):
            if step == 1 and world.rank == 2:
                batch.tensors["x"].fill_(torch.nan)
            stats = solver.step(batch)
            assert all(usable(column) for table in stats.tables.values() for column in table.columns(world))
            told.append((stats.loss, [line for table in stats.tables.values() for line in table.lines()]))
        solver.gather()
        return told, flat(solver.model)

    for rank, (told, parameters) in enumerate(run_ranks(3, program)):
        assert parameters.isfinite().all()
        assert (told[1][0] is None) == (rank == 2) and all(loss is not None for loss, _ in told[2:])
        assert [bool(lines) for _, lines in told] == [False, True, False, False, False, False]
        assert "not finite: 2;" in told[1][1][0]


@pytest.mark.parametrize("gossip", [None, MixingConfig()])
def test_buffers_are_averaged_and_an_evaluation_changes_nothing(gossip):
    """BatchNorm's statistics: the ranks' means are stated, and each rank goes on with its own."""
    config = LocalConfig(every=4, outer=MEAN, gossip=gossip)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    problem = Problem(batch=12, model=lambda: copy.deepcopy(network))

    def program(transport, looks):
        world = World(transport)
        solver = config.build(problem.task(), Context(world=world, exchange=RingConfig(), steps=9))
        for step, batch in enumerate(problem.batches(world.rank, 3, 6)):
            solver.step(batch)
            if step in looks:
                own = copy.deepcopy(solver.model.state_dict())
                solver.gather()
                stated = copy.deepcopy(solver.model.state_dict())
        return own, stated, flat(solver.model)

    looked = run_ranks(3, lambda t: program(t, (3, 4)))
    seldom = run_ranks(3, lambda t: program(t, (3,)))
    for (own, stated, end), (_, then, same) in zip(looked, seldom, strict=True):
        assert torch.equal(end, same)
        assert all(torch.equal(value, looked[0][1][name]) for name, value in stated.items())
        assert not torch.equal(own["1.running_mean"], stated["1.running_mean"])
        assert (int(then["1.num_batches_tracked"]), int(stated["1.num_batches_tracked"])) == (4, 5)
    mean = sum(own["1.running_var"] for own, _, _ in seldom) / 3
    torch.testing.assert_close(seldom[0][1]["1.running_var"], mean)


def test_late_fragments_resume_and_reshard():
    """With changes under way in the checkpoint."""
    trial = Trial(LATE, exchange=TwoPhaseConfig(codec=ChunkedTopK(bucket=64, k=8)))
    check_equal_on_all_ranks(trial, 2)
    check_resume(trial, 4)
    for after in (3, 5):
        check_other_ranks(trial, 4, after)


def test_rounds_are_as_long_as_their_exchange_asks_for(monkeypatch):
    """Four of one step, then what is reckoned from their times, which a resumed run keeps."""
    asked = []
    monkeypatch.setattr(pace, "steps_of_a_round", lambda *given: asked.append(given) or 3)
    config = LocalStepsConfig(every=5, wait_share=0.2, outer=MEAN)

    def begun(transport):
        model = Quadratic()
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
        return model, LocalSteps(model, optimizer, config, world=World(transport), exchange=RING, steps=STEPS)

    def program(transport):
        _, local = begun(transport)
        landed = [step for step in range(1, 9) if local.step()]
        local.collect()
        _, again = begun(transport)
        again.load_state_dict(local.state_dict(), [local.rank_state_dict()] * 2)
        return landed, local.chosen, [step for step in range(9, STEPS + 1) if again.step()], again.pace.every

    assert run_ranks(2, program) == [([1, 2, 3, 4, 7], False, [10, 13], 3)] * 2
    assert asked[0] == asked[1]
    share, exchange_s, step_s, most = asked[0]
    assert (share, most) == (0.2, 5) and exchange_s > 0 and step_s > 0


@pytest.mark.parametrize(("exchange_s", "step_s", "steps"), [(0.1, 0.03, 30), (1e-6, 0.03, 1), (9, 0.03, 64)])
def test_the_fewest_steps_that_keep_the_share(exchange_s, step_s, steps):
    assert pace.steps_of_a_round(0.1, exchange_s, step_s, 64) == steps
    assert steps == 64 or exchange_s / (exchange_s + steps * step_s) <= 0.1 + 1e-9


def test_the_plan_counts_the_bytes_that_travel():
    exchange = TwoPhaseConfig(codec=ChunkedTopK(bucket=64, k=8))
    trial = Trial(LocalConfig(every=5), exchange=exchange)
    plan = trial.config.build(trial.problem.task(), trial.context(World(RehearsalTransport(3)), 10)).plan(1.0)
    sent = max(sum(run.sent_bytes) for run in trial.run(3, 5))
    assert plan["bytes a round"].startswith(f"{sent:,} sent by each rank, {sent / 5:,.0f} a step")


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"every": 4, "delay": 4}, "lands before it is sent again"),
        ({"every": 2, "fragments": 3}, "do not fit into a round"),
        ({"every": 5, "every_at_end": 4}, "not shrink"),
        ({"gossip": {}, "fragments": 2}, "all parameters go at once"),
        ({"outer": {"name": "adahessian"}}, "more than a mean change"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        LocalConfig(**settings)


def test_gossip_needs_float32():
    with pytest.raises(JobError, match="float32"):
        Trial(LocalConfig(gossip=MixingConfig()), Problem(dtype=torch.float64)).run(1, 1)
