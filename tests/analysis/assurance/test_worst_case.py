"""The worst cases are those of a linear program over all priors on a grid, no prior drawn at random does worse, and the
numbers are right at a thousand million demands.
"""

import math

import mpmath
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from hpcopt.analysis.assurance.next_demands import survival
from hpcopt.analysis.assurance.prior import PartialPrior, TwoPoints
from hpcopt.analysis.assurance.worst_case import (
    attained,
    confidence,
    confidence_log_odds,
    demands_needed,
    uniform_confidence,
)
from hpcopt.errors import JobError

FEW = settings(max_examples=40, deadline=None)


def likelihood(x: np.ndarray, k: int, n: int) -> np.ndarray:
    """Scaled to a largest value near 1."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.where(k > 0, k * np.log(x), 0.0) + np.where(n > k, (n - k) * np.log1p(-x), 0.0)
    return np.exp(logs - logs.max())


def least_posterior_mean(prior: PartialPrior, value: np.ndarray, x: np.ndarray, k: int, n: int) -> float:
    """The least of sum(w value L) / sum(w L) over priors w on the points x: a linear fractional program, which Charnes
    and Cooper's change of variables (u = w / sum(w L)) makes linear.
    """
    weight = likelihood(x, k, n)
    below = (x <= prior.eps) & (x >= prior.p_l)
    above = x > prior.eps
    inside = below | above
    tied = np.where(below, 1 - prior.theta, -prior.theta)[inside]  # theta (above) = (1 - theta) (below)
    done = linprog((value * weight)[inside], A_eq=[tied, weight[inside]], b_eq=[0, 1], bounds=(0, None), method="highs")
    assert done.success
    return float(done.fun)


def grid(*points: float) -> np.ndarray:
    return np.unique([*np.geomspace(1e-6, 1 - 1e-9, 1500), *points])


PRIORS = [PartialPrior(0.9, 0.001, 1e-5), PartialPrior(0.8, 0.005, 1e-4), PartialPrior(0.3, 0.01, 1e-3)]


@pytest.mark.parametrize("k", [0, 1, 2, 3])
@pytest.mark.parametrize("n", [50, 400])
@pytest.mark.parametrize("prior", PRIORS, ids=str)
def test_the_worst_cases_are_those_of_a_linear_program(prior, k, n):
    p, t = 0.02, 100
    beyond = max(p, k / n)
    x = grid(prior.p_l, prior.eps, p, p * (1 + 1e-9), beyond * (1 + 1e-9))
    assert confidence(prior, p, k, n) == pytest.approx(least_posterior_mean(prior, x <= p, x, k, n), rel=1e-5, abs=1e-7)
    found = survival(prior, t, k, n)
    x = grid(prior.p_l, prior.eps, found.prior.x, found.prior.y)
    assert found.value == pytest.approx(least_posterior_mean(prior, (1 - x) ** t, x, k, n), rel=1e-6, abs=1e-7)


def test_known_values():
    first, second = PRIORS[:2]
    assert confidence(first, 0.01, 0, [100, 500]) == pytest.approx([0.956984, 0.998797], abs=5e-7)
    assert survival(first, 100, 0, 100).value == pytest.approx(0.880965, abs=5e-7)
    assert survival(first, 100, 0, 500).value == pytest.approx(0.898341, abs=5e-7)
    assert confidence(second, 0.02, 3, 400) == pytest.approx(0.001460, abs=5e-7)
    found = survival(second, 100, 3, 400)
    assert found.value == pytest.approx(0.0699, abs=5e-5)
    assert found.prior.x == second.p_l  # the failures speak against a network that is very good
    assert attained(second, 0.02, 3, 400) == TwoPoints(second.p_l, 0.02)


@pytest.mark.parametrize("k", [0, 3])
def test_edges(k):
    n = 200
    assert confidence(PartialPrior(1, 0.01, 1e-4), 0.02, k, n) == 1
    assert confidence(PartialPrior(0, 0.01, 1e-4), 0.02, k, n) == 0
    assert confidence(PartialPrior(0.7, 0.01, 1e-4), 0.02, 0, 0) == pytest.approx(0.7)
    assert confidence(PartialPrior(0.7, 0.01, 1e-4), 0.009, k, n) == 0
    assert confidence(PartialPrior(0.7, 0.01, 1e-4), 1, k, n) == 1
    assert confidence(PartialPrior(0.7, 0.01), 0.02, 3, n) == 0  # with p_l = 0
    assert survival(PartialPrior(1, 0.01, 1e-4), 50, k, n).value == pytest.approx(0.99**50)
    assert survival(PartialPrior(0, 0.01, 1e-4), 50, k, n).value == 0
    assert survival(PartialPrior(0.7, 0.01), 50, 3, n).value == 0
    assert survival(PartialPrior(0.7, 0.01, 1e-4), 50, 0, 0).value == pytest.approx(0.7 * 0.99**50)
    assert survival(PartialPrior(0.7, 0.01, 1e-4), 50, 5, 5).value < 1e-8


def exact(prior: PartialPrior, x: float, y: float, k: int, n: int) -> mpmath.mpf:
    """ln(theta L(x) / ((1 - theta) L(y))) with 60 digits."""
    with mpmath.workdps(60):
        x, y, theta = mpmath.mpf(x), mpmath.mpf(y), mpmath.mpf(prior.theta)
        return mpmath.log(theta / (1 - theta)) + k * mpmath.log(x / y) + (n - k) * mpmath.log((1 - x) / (1 - y))


@pytest.mark.parametrize(("k", "p"), [(0, 1e-8), (3, 2e-8), (900, 1.2e-6), (10**6, 1.01e-3)])
def test_a_thousand_million_demands(k, p):
    n, prior = 10**9, PartialPrior(0.9, p / 1.01, p / 3)
    x, y = (value := attained(prior, p, k, n)).x, value.y
    assert confidence_log_odds(prior, p, k, n) == pytest.approx(float(exact(prior, x, y, k, n)), rel=1e-12)
    found = survival(prior, 10**6, k, n)
    weight = mpmath.mpf(1) / (1 + mpmath.exp(-exact(prior, found.prior.x, found.prior.y, k, n)))
    mean = weight * mpmath.power(1 - mpmath.mpf(found.prior.x), 10**6)
    mean += (1 - weight) * mpmath.power(1 - mpmath.mpf(found.prior.y), 10**6)
    assert found.value == pytest.approx(float(mean), rel=1e-8)


probabilities = st.floats(0.001, 0.999)


@st.composite
def situations(draw):
    eps = draw(st.floats(1e-5, 0.2))
    prior = PartialPrior(draw(probabilities), eps, eps * draw(st.floats(1e-4, 1)))
    n = draw(st.integers(0, 3000))
    return prior, draw(st.integers(0, min(n, 6))), n


@FEW
@given(situations(), st.floats(1, 5), st.integers(1, 500), st.integers(0, 2**32))
def test_no_prior_that_agrees_gives_less(situation, factor, t, seed):
    """Priors of twenty points, with masses of all sizes."""
    prior, k, n = situation
    p = min(prior.eps * factor, 0.9)
    rng = np.random.default_rng(seed)
    low = prior.p_l + (prior.eps - prior.p_l) * rng.random(10) ** rng.choice([1, 8])
    high = prior.eps + (1 - prior.eps) * rng.random(10) ** rng.choice([1, 8, 20])
    worst = attained(prior, p, k, n), survival(prior, t, k, n).prior
    x = np.array([*low, *(point.x for point in worst), *high, *(point.y for point in worst)])
    masses = [shares * mass for mass in (prior.theta, 1 - prior.theta) for shares in [rng.dirichlet(np.full(12, 0.1))]]
    posterior = np.concatenate(masses) * likelihood(x, k, n)
    assume(posterior.sum() > 1e-290)
    posterior /= posterior.sum()
    assert posterior[x <= p].sum() + posterior[np.isclose(x, p)].sum() >= confidence(prior, p, k, n) - 1e-9
    assert (posterior * (1 - x) ** t).sum() >= survival(prior, t, k, n).value - 1e-9


@FEW
@given(situations(), st.floats(1, 5), st.floats(1.01, 3), st.integers(1, 300))
def test_each_argument_moves_the_worst_cases_one_way(situation, factor, more, t):
    prior, k, n = situation
    p = min(prior.eps * factor, 0.9)

    def both(prior, p, t, k, n):
        return np.array([confidence(prior, p, k, n), survival(prior, t, k, n).value])

    now, slack = both(prior, p, t, k, n), 1e-10
    surer = PartialPrior(1 - (1 - prior.theta) / more, prior.eps, prior.p_l)
    better = PartialPrior(prior.theta, max(prior.eps / more, prior.p_l), prior.p_l)
    known = PartialPrior(prior.theta, prior.eps, min(prior.p_l * more, prior.eps))
    assert (both(surer, p, t, k, n) >= now - slack).all()
    assert (both(known, p, t, k, n) >= now - slack).all()
    assert (both(better, p, t, k, n) >= now - slack).all()
    assert (both(prior, p, t, k, n + 100) >= now - slack).all()
    assert (both(prior, p, t, k + 1, n + 1) <= now + slack).all()
    assert confidence(prior, min(p * more, 1), k, n) >= now[0] - slack
    assert survival(prior, t + 10, k, n).value <= now[1] + slack


@FEW
@given(situations(), st.floats(1.2, 5), st.floats(0.5, 0.999))
def test_the_demands_needed_are_the_fewest(situation, factor, wanted):
    prior, k, _ = situation
    p = min(prior.eps * factor, 0.9)
    n = demands_needed(prior, p, wanted, k)
    assert n is not None and n >= k
    assert confidence(prior, p, k, n) >= wanted * (1 - 1e-12)
    assert n == k or confidence(prior, p, k, n - 1) < wanted * (1 + 1e-12)


def test_some_confidence_is_out_of_reach():
    assert demands_needed(PartialPrior(0.9, 0.01), 0.01, 0.95) is None  # eps is the bound: theta is all there is
    assert demands_needed(PartialPrior(0.9, 0.01), 0.02, 0.95, failures=1) is None  # p_l = 0
    assert demands_needed(PartialPrior(0, 0.01), 0.02, 0.95) is None
    assert demands_needed(PartialPrior(0.9, 0.01), 0.02, 0.8) == 0
    assert demands_needed(PartialPrior(0.5, 1e-9, 1e-12), 2e-9, 0.99) > 10**9


def test_the_uniform_prior_is_a_beta_distribution():
    assert uniform_confidence(0.02, 0, 100) == pytest.approx(1 - 0.98**101)
    assert uniform_confidence(0.5, [1, 5], [2, 10]) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: PartialPrior(1.2, 0.1), "theta = 1.2 is no probability"),
        (lambda: PartialPrior(0.9, -0.1), r"eps = -0\.1 is no probability"),
        (lambda: PartialPrior(0.9, math.nan), "eps = nan is no probability"),
        (lambda: PartialPrior(0.9, 0.1, 0.2), r"p_l = 0\.2 and eps = 0\.1 contradict"),
        (lambda: confidence(PRIORS[0], 0.01, 3, 2), "3 failures in 2 demands"),
        (lambda: confidence(PRIORS[0], 0.01, [0, -1], 2), "-1 failures in 2 demands"),
        (lambda: confidence(PRIORS[0], 1.5, 0, 2), r"bound = 1\.5"),
        (lambda: survival(PRIORS[0], 0, 0, 2), "surviving 0 demands"),
        (lambda: demands_needed(PRIORS[0], 0.01, 1.0), "confidence = 1 would take endless demands"),
        (lambda: demands_needed(PRIORS[0], 0.01, 0.9, -1), "-1 failures"),
    ],
)
def test_what_cannot_be_is_one_error(wrong, said):
    with pytest.raises(JobError, match=said):
        wrong()
