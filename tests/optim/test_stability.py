"""The formulas against eigenvalues of the recurrence, and against runs on a quadratic."""

import numpy as np
import pytest
import torch
from torch import nn

from hpcopt.optim import Rsg
from hpcopt.optim.stability import gain, guideline, largest_observation, largest_step

PAIRS = [(0.0, 0.0), (0.9, 0.0), (0.9, 0.1), (0.99, 0.3), (0.5, 0.9), (0.999, 0.1)]


def matrix(tau: float, beta: float, mu: float) -> np.ndarray:
    """One step on a quadratic: of (x, lr m)."""
    return np.array(
        [
            [1 - mu * tau - (1 - mu) * (1 - beta) * tau, -(1 - mu) * beta],
            [(1 - beta) * tau, beta],
        ]
    )


@pytest.mark.parametrize(("beta", "mu"), PAIRS)
@pytest.mark.parametrize("tau", [0.01, 0.3, 1.0, 1.9, 5.0])
def test_the_gain_is_the_spectral_radius(tau, beta, mu):
    radius = np.abs(np.linalg.eigvals(matrix(tau, beta, mu))).max()
    assert gain(tau, beta, mu) == pytest.approx(radius, rel=1e-7)


@pytest.mark.parametrize(("beta", "mu"), PAIRS)
def test_the_largest_step_parts_the_stable_from_the_others(beta, mu):
    limit = largest_step(beta, mu)
    assert gain(0.999 * limit, beta, mu) < 1 < gain(1.001 * limit, beta, mu)


@pytest.mark.parametrize(("beta", "mu"), [(0.9, 0.1), (0.5, 0.5)])
@pytest.mark.parametrize(("share", "shrinks"), [(0.98, True), (1.02, False)])
def test_so_does_the_optimizer(beta, mu, share, shrinks):
    x = nn.Parameter(torch.ones(1, dtype=torch.float64))
    curvature = 4.0
    optimizer = Rsg([x], lr=share * largest_step(beta, mu) / curvature, momentum=beta, observation=mu)
    for _ in range(400):
        x.grad = curvature * x.detach()
        optimizer.step()
    assert (abs(float(x)) < 1e-2) == shrinks
    assert (abs(float(x)) > 1e2) != shrinks


@pytest.mark.parametrize(("tau", "beta"), [(1.0, 0.9), (10.0, 0.9), (1.5, 0.0), (30.0, 0.95)])
def test_the_largest_observation_factor_is_stable_and_no_larger_one_is(tau, beta):
    mu = largest_observation(tau, beta)
    assert gain(tau, beta, 0.999 * mu) <= 1
    if mu < 1:
        assert gain(tau, beta, 1.001 * mu) > 1


@pytest.mark.parametrize(("tau", "beta"), [(3.0, 0.0), (100.0, 0.9)])
def test_no_factor_helps_a_step_that_is_too_long(tau, beta):
    with pytest.raises(ValueError, match="not stable"):
        largest_observation(tau, beta)


@pytest.mark.parametrize("condition", [1e3, 1e5])
def test_the_guideline_reaches_its_rate_on_every_curvature(condition):
    tau, beta, mu = guideline(condition)
    worst = max(gain(tau * curvature, beta, mu) for curvature in np.geomspace(1 / condition, 1, 200))
    assert 1 - worst == pytest.approx(2.0 / (2 * condition**0.5), rel=0.3)


def test_a_small_condition_number_needs_no_guideline():
    with pytest.raises(ValueError, match="too small"):
        guideline(3.0)
