"""Levenberg-Marquardt damping where rho is known in closed form, on any ranks; schedules of damping and frequencies."""

import copy
import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World, alone
from hpcopt.errors import JobError
from hpcopt.solvers.kaisa.damping import adapted
from hpcopt.solvers.kaisa.preconditioner import Kaisa
from hpcopt.solvers.kaisa.solver import KaisaSolver
from hpcopt.testing.problem import CLASSES, FEATURES, Problem, flat
from tests.solvers.kaisa.test_distribution import train
from tests.solvers.kaisa.test_layers import mean_loss
from tests.solvers.kaisa.test_preconditioner import net_and_words
from tests.solvers.kaisa.test_solver import PROBLEM, STEPS, solver, trial

SAMPLES = 50


def least_squares(curvature: float, step: float, **settings) -> Kaisa:
    """A step of a linear model under squared error; its Fisher is A (x) I, but it is told ``curvature`` A (x) I."""
    torch.manual_seed(0)
    model = nn.Linear(6, 3).double()
    x, target = torch.randn(SAMPLES, 6, dtype=torch.float64), torch.randn(SAMPLES, 3, dtype=torch.float64)
    settings = {"damping": 0.1, "kl_clip": None, "damping_every": 1, **settings}
    kaisa = Kaisa(model, alone(), **settings)
    unit = torch.linalg.qr(torch.randn(SAMPLES, 3, dtype=torch.float64)).Q * (SAMPLES * curvature) ** 0.5
    ((model(x) * unit).sum() / SAMPLES).backward()
    model.zero_grad()

    def loss():
        return (model(x) - target).square().sum() / (2 * SAMPLES)

    with kaisa.paused():
        before = loss()
        before.backward()
        raw = [p.grad.clone() for p in model.parameters()]
        old = [p.detach().clone() for p in model.parameters()]
        assert kaisa.damping_due
        kaisa.step(terms=SAMPLES)
        with torch.no_grad():
            for p in model.parameters():
                p -= step * p.grad
            after = loss()
    kaisa.adapt_damping(before.item(), after.item())
    slope = sum((g * (p.detach() - o)).sum() for g, p, o in zip(raw, model.parameters(), old, strict=True))
    bend = (after - before).detach() - slope  # half of delta^T H delta: the loss is a quadratic
    kaisa.expected = float((after - before).detach() / (slope + curvature * bend))
    return kaisa


def test_ratio_is_one_where_the_loss_is_the_model():
    kaisa = least_squares(1.0, 0.3, damping_decay=0.9)
    assert kaisa.ratio == pytest.approx(1, rel=1e-9)
    assert kaisa.damping == pytest.approx(0.09)


@pytest.mark.parametrize("curvature, step", [(0.5, 0.3), (0.25, 0.4), (3.0, 1.0)])
def test_ratio_of_a_wrong_curvature_is_that_of_the_closed_form(curvature, step):
    kaisa = least_squares(curvature, step)
    assert kaisa.expected != pytest.approx(1, abs=0.05)
    assert kaisa.ratio == pytest.approx(kaisa.expected, rel=1e-9)


def test_a_step_that_goes_too_far_raises_the_damping_up_to_its_bound():
    kaisa = least_squares(0.1, 0.9, damping_decay=0.5)
    assert kaisa.ratio == pytest.approx(kaisa.expected, rel=1e-9)
    assert kaisa.ratio < 0.25
    assert kaisa.damping == pytest.approx(0.2)
    assert least_squares(0.1, 0.9, damping_decay=0.5, damping_max=0.15).damping == 0.15
    uphill = least_squares(1.0, -0.3)
    assert uphill.ratio == -math.inf
    assert uphill.damping > 0.1


def test_between_the_marks_damping_stays_and_what_is_no_number_raises_it():
    bounds = (1e-3, 10.0)
    assert adapted(1.0, 0.5, 0.9, bounds) == 1.0
    assert adapted(1.0, 0.9, 0.9, bounds) == 0.9
    assert adapted(1.0, math.nan, 0.5, bounds) == 2.0
    assert adapted(1e-3, 1.0, 0.5, bounds) == 1e-3


@pytest.mark.parametrize("size, fraction", [(2, 0.5), (3, 1.0), (4, 0.5)])
def test_ranks_agree_on_the_ratio_to_the_bit(size, fraction):
    """With every kind of layer, each rank holding some of the factors, and an inner optimizer of any kind."""

    start, words = net_and_words()

    def program(world: World) -> tuple[float, float]:
        net, x = copy.deepcopy(start), words[world.rank :: world.size]
        kaisa = Kaisa(net, world, damping=0.2, damping_every=2, fraction=min(1.0, fraction))
        optimizer = torch.optim.SGD(net.parameters(), 0.01, 0.9)
        for _ in range(4):
            net.zero_grad()
            loss = mean_loss(net(x))
            loss.backward()
            for p in net.parameters():
                world.all_reduce(p.grad)
                p.grad /= world.size
            due = kaisa.damping_due
            kaisa.step()
            optimizer.step()
            if due:
                with kaisa.paused(), torch.no_grad():
                    after = mean_loss(net(x))
                kaisa.adapt_damping(loss.item(), after.item())
        return kaisa.ratio, kaisa.damping

    expected = program(alone())
    assert math.isfinite(expected[0])
    found = run_ranks(size, lambda t: program(World(t)))
    assert found[0] == pytest.approx(expected, rel=1e-9)
    assert all(other == found[0] for other in found)


ADAPTIVE = {"damping_every": 2, "damping_decay": 0.5}


def steps(s: KaisaSolver, count: int, first: int = 0) -> KaisaSolver:
    for batch in PROBLEM.batches(0, 1, count, first):
        s.step(batch)
    return s


@pytest.mark.parametrize("size", [2, 3])
def test_a_job_adapts_its_damping_and_continues_on_other_ranks(size):
    straight = steps(solver(**ADAPTIVE), STEPS)
    assert straight.kaisa.damping != 0.1
    half = trial(**ADAPTIVE).run(size, 3, total=STEPS)
    continued = solver(**ADAPTIVE)
    continued.load_state_dict(copy.deepcopy(half[0].shared), [copy.deepcopy(run.own) for run in half])
    steps(continued, STEPS - 3, 3)
    assert continued.kaisa.damping == pytest.approx(straight.kaisa.damping)
    torch.testing.assert_close(flat(continued.model), flat(straight.model), rtol=1e-8, atol=1e-10)


def test_looking_again_leaves_buffers_and_random_numbers_alone():
    network = nn.Sequential(nn.Linear(FEATURES, 7), nn.BatchNorm1d(7), nn.Dropout(0.5), nn.Linear(7, CLASSES))
    problem = Problem(model=lambda: copy.deepcopy(network), dtype=torch.float64)
    results = []
    for settings in ({}, {"damping_every": 1, "damping_decay": 0.999999}):
        torch.manual_seed(3)
        one = trial(**settings, inverse_every=10)
        s = one.config.build(problem.task(), one.context(alone(), STEPS))
        losses = [s.step(batch).loss for batch in problem.batches(0, 1, STEPS)]
        results.append((losses, [b.clone() for b in s.model.buffers()]))
    assert results[0][0] == results[1][0]
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))


def test_schedules_end_where_they_should():
    """Factors every 1 to 4 steps, inverses every 2 to 8, damping from 1 to 0.01, over 16 steps, each geometrically."""
    net, x = net_and_words()
    final = {"damping_final": 0.01, "factor_every_final": 4, "inverse_every_final": 8}
    kaisa = Kaisa(net, alone(), total_steps=16, damping=1.0, factor_every=1, inverse_every=2, **final)
    seen = []
    for _ in range(17):
        seen.append((kaisa.damping, kaisa.factor_every, kaisa.inverse_every, kaisa.factors_due, kaisa.inverses_due))
        net.zero_grad()
        mean_loss(net(x)).backward()
        kaisa.step()
    for step, (damping, factors, inverses, factors_due, inverses_due) in enumerate(seen):
        assert damping == pytest.approx(10 ** (-2 * step / 16))
        assert (factors, inverses) == (round(4 ** (step / 16)), round(2 * 4 ** (step / 16)))
        assert factors_due == (step % factors == 0)
        assert inverses_due == (step % inverses == 0)
    assert seen[16][:3] == (pytest.approx(0.01), 4, 8)


def test_schedules_survive_a_checkpoint():
    _, kaisa = train(alone(), torch.float64, 3)
    kaisa.factor_every, kaisa.inverse_every, kaisa.damping = 5, 7, 0.5
    _, other = train(alone(), torch.float64, 0)
    other.load_state_dict(kaisa.state_dict(), [kaisa.rank_state_dict()])
    assert (other.factor_every, other.inverse_every, other.damping) == (5, 7, 0.5)


def test_what_does_not_go_together_is_refused():
    with pytest.raises(ValidationError, match="not both"):
        Kaisa(nn.Linear(2, 2), alone(), damping_every=5, damping_final=0.1, total_steps=10)
    with pytest.raises(JobError, match="total_steps"):
        Kaisa(nn.Linear(2, 2), alone(), damping_final=0.1)
    for method in ("eigen", "ekfac"):
        with pytest.raises(ValidationError, match="leave inverse_dtype"):
            Kaisa(nn.Linear(2, 2), alone(), method=method, inverse_dtype="bfloat16")
