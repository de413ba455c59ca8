"""Factors are non-negative, every step goes down, and the codes are the least-squares ones."""

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import nnls

from hpcopt.models.nmf import FactorMlpConfig, Nmf, codes, factorize, update_basis, update_codes


def parts(n: int = 60, d: int = 15, r: int = 4, noise: float = 0.05) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    s, b, e = (torch.rand(*shape, generator=generator, dtype=torch.float64) for shape in ((n, r), (r, d), (n, d)))
    return s @ b + noise * e


def objective(h, s, b) -> float:
    return 0.5 * float((h - s @ b).square().sum())


def test_codes_are_non_negative_least_squares():
    torch.manual_seed(0)
    h, basis = torch.randn(8, 10, dtype=torch.float64), torch.rand(4, 10, dtype=torch.float64)
    expected = np.stack([nnls(basis.T.numpy(), row.numpy())[0] for row in h])
    np.testing.assert_allclose(codes(h, basis, 3000).numpy(), expected, atol=1e-6)


def test_no_step_raises_the_objective_and_nothing_is_negative():
    h = parts()
    _, basis = factorize(h, 4, 0, torch.Generator().manual_seed(0))
    s, value = torch.zeros(60, 4, dtype=torch.float64), float("inf")
    for _ in range(10):
        for sweep in ("codes", "gradient", "basis"):
            if sweep == "codes":
                s = update_codes(s, h, basis)
            elif sweep == "gradient":
                s = codes(h, basis, 1, s)
            else:
                update_basis(basis, s.T @ s, s.T @ h)
            assert s.min() >= 0 and basis.min() >= 0
            assert float(torch.linalg.vector_norm(basis, dim=1).max()) <= 1 + 1e-12
            assert objective(h, s, basis) <= value * (1 + 1e-12)
            value = objective(h, s, basis)


def test_it_finds_a_factorisation_that_exists():
    h = parts(noise=0.0)
    s, basis = factorize(h, 4, 500, torch.Generator().manual_seed(0))
    assert objective(h, s, basis) < 1e-3 * 0.5 * float(h.square().sum())


def test_a_factor_that_no_sample_uses_stays():
    basis = torch.rand(2, 3)
    before = basis.clone()
    update_basis(basis, torch.zeros(2, 2), torch.zeros(2, 3))
    assert torch.equal(basis, before)


def test_features_of_nothing_but_zeros():
    s, basis = factorize(torch.zeros(5, 3), 2, 3, torch.Generator().manual_seed(0))
    assert torch.equal(s, torch.zeros(5, 2))
    assert bool(torch.isfinite(basis).all())


def test_the_proximal_step_never_costs_more_than_staying():
    torch.manual_seed(0)
    layer = Nmf(10, 3, steps=2000).double()
    anchor = torch.rand(30, 10, dtype=torch.float64)
    target = (layer(anchor) + 0.2 * torch.randn(30, 3, dtype=torch.float64)).clamp_min(0)

    def cost(z):
        return 2.0 * (layer(z) - target).square().sum(1) + (z - anchor).square().sum(1)

    z = layer.proximal(anchor, target, 2.0)
    assert bool((cost(z) <= cost(anchor) + 1e-9).all())
    assert cost(z).sum() < 0.8 * cost(anchor).sum()


@pytest.mark.parametrize("hidden", [(12,), (12, 9)])
def test_the_network_ends_in_codes(hidden):
    model = FactorMlpConfig(hidden=hidden, factors=5).build((1, 4, 4), 3)
    x = torch.randn(6, 1, 4, 4)
    assert model(x).shape == (6, 3)
    code = model[:-1](x)
    assert code.shape == (6, 5) and code.min() >= 0
    widths = [16, *hidden]
    assert sum(p.numel() for p in model.parameters()) == sum((a + 1) * b for a, b in itertools.pairwise(widths)) + 18
