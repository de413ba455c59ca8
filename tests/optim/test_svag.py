"""SVAG and M-SVAG against the paper's formulas, its estimates against what they estimate, M-SVAG against another
implementation.
"""

import numpy as np
import pytest
import torch
from torch import nn

from hpcopt.optim import MSvagConfig, SignumConfig, Svag, SvagConfig


def svag(x, gradients, *, lr, beta, momentum):
    """One parameter's way, by the formulas."""
    m, v = np.zeros_like(x), np.zeros_like(x)
    for t, g in enumerate(gradients, 1):
        m, v = beta * m + (1 - beta) * g, beta * v + (1 - beta) * g * g
        mean, second = m / (1 - beta**t), v / (1 - beta**t)
        rho = min((1 - beta) ** 2 * (1 - beta ** (2 * t)) / ((1 - beta**t) ** 2 * (1 - beta**2)), 0.9999)
        s = (second - mean**2) / (1 - rho)
        factor = np.clip(mean**2 / (mean**2 + (rho * s if momentum else s)), 0, 1)
        x = x - lr * factor * (mean if momentum else g)
    return x


@pytest.mark.parametrize("config", [SvagConfig(lr=0.05, beta=0.8), MSvagConfig(lr=0.05, beta=0.8)])
def test_equals_the_formulas(config):
    generator = torch.Generator().manual_seed(0)
    p = nn.Parameter(torch.randn(7, 5, generator=generator, dtype=torch.float64))
    start = p.detach().numpy().copy()
    gradients = torch.randn(9, 7, 5, generator=generator, dtype=torch.float64)
    optimizer = config.build([p])
    for g in gradients:
        p.grad = g
        optimizer.step()
    expected = svag(start, gradients.numpy(), lr=0.05, beta=0.8, momentum=config.name == "m_svag")
    np.testing.assert_allclose(p.detach().numpy(), expected, rtol=1e-9)


def factors(gradients: torch.Tensor, *, averaged: bool, beta: float = 0.9) -> torch.Tensor:
    """After these gradients of one vector."""
    p = nn.Parameter(torch.zeros_like(gradients[0]))
    optimizer = Svag([p], lr=0.0, beta=beta, momentum=averaged)
    for g in gradients:
        p.grad = g
        optimizer.step()
    return optimizer.factors(len(gradients), beta, [p], averaged=averaged)[0]


@pytest.mark.parametrize("averaged", [True, False])
def test_factors_are_shares_and_know_no_scale(averaged):
    gradients = torch.randn(30, 500, generator=torch.Generator().manual_seed(0))
    small = factors(gradients, averaged=averaged)
    assert small.min() >= 0
    assert small.max() <= 1 + 1e-5
    torch.testing.assert_close(factors(1024 * gradients, averaged=averaged), small)


def test_without_noise_nothing_is_shortened():
    torch.testing.assert_close(factors(torch.ones(20, 3), averaged=True), torch.ones(3))
    torch.testing.assert_close(factors(torch.ones(1, 3), averaged=True), torch.ones(3), rtol=1e-2, atol=0)


def test_pure_noise_is_shortened_most():
    noise = torch.randn(60, 20_000, generator=torch.Generator().manual_seed(0))
    assert factors(noise, averaged=False).mean() < 0.1
    assert factors(noise + 3, averaged=False).mean() > 0.8


def test_the_variance_is_estimated_without_bias():
    """Gradients of variance 4: the mean over 20,000 values of both estimates, from the factors."""
    x = 1 + 2 * torch.randn(40, 20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = nn.Parameter(torch.zeros_like(x[0]))
    optimizer = Svag([p], lr=0.0)
    for g in x:
        p.grad = g
        optimizer.step()
    m = optimizer.state[p]["m"] / (1 - 0.9**40)
    (factor,) = optimizer.factors(40, 0.9, [p], averaged=False)
    s = m.square() * (1 / factor - 1)
    assert float(s.mean()) == pytest.approx(4.0, rel=0.03)
    rho = 0.1 * (1 + 0.9**40) / (1.9 * (1 - 0.9**40))
    assert float(m.var()) == pytest.approx(rho * 4.0, rel=0.03)


def test_a_value_that_never_had_a_gradient_stays_and_nan_is_seen():
    p = nn.Parameter(torch.ones(2))
    p.grad = torch.tensor([0.0, torch.nan])
    MSvagConfig().build([p]).step()
    assert float(p[0]) == 1.0
    assert bool(p[1].isnan())


def test_signs_of_gradients_and_of_momentum_are_signum():
    """The paper's SSD and M-SSD."""
    gradients = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    for beta in (0.0, 0.9):
        p, m, x = nn.Parameter(torch.zeros(50)), torch.zeros(50), torch.zeros(50)
        optimizer = SignumConfig(lr=0.01, momentum=beta).build([p])
        for g in gradients:
            p.grad = g
            optimizer.step()
            m = beta * m + (1 - beta) * g
            x -= 0.01 * m.sign()
        torch.testing.assert_close(p.detach(), x)
