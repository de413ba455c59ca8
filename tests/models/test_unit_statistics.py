"""Effective rank and dormant units against matrices and layers in which they are known."""

import math

import pytest
import torch

from hpcopt.models.control.perceptrons import DenseMlpBodyConfig, MlpBodyConfig
from hpcopt.models.control.unit_statistics import dormant_share, effective_rank, unit_statistics


def matrix(values, rows=40, columns=20):
    torch.manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, len(values), dtype=torch.float64))[0] for n in (rows, columns))
    return left @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ right.T


@pytest.mark.parametrize(
    ("values", "energy", "rank"),
    [
        ([5.0], 0.99, 1),
        ([98.0, 1.5, 0.5], 0.99, 2),  # 0.98, then 0.995
        ([98.0, 1.5, 0.5], 0.97, 1),
        ([98.0, 1.5, 0.5], 0.999, 3),
        ([1.0] * 10, 0.95, 10),
        ([10.0, 1.0], 0.95, 2),  # of values, not of their squares, of which the first has 0.99
    ],
)
def test_effective_rank_of_known_singular_values(values, energy, rank):
    assert effective_rank(matrix(values), energy) == rank
    assert effective_rank(matrix(values).T, energy) == rank


def test_effective_rank_of_nothing_and_of_what_is_not_finite():
    assert effective_rank(torch.zeros(4, 3)) == 0
    assert math.isnan(effective_rank(torch.tensor([[1.0, math.nan]])))
    assert math.isnan(effective_rank(torch.tensor([[1.0, math.inf]])))


def test_units_that_hardly_speak_are_dormant():
    layer = torch.tensor([[1.0, -2.0, 0.0, 0.02], [-1.0, 4.0, 0.0, -0.02]])  # magnitudes 1, 3, 0, 0.02; mean 1.005
    assert dormant_share([layer]) == 0.5
    assert dormant_share([layer], tau=0.01) == 0.25
    assert dormant_share([layer, torch.ones(2, 4)]) == 0.25
    assert dormant_share([torch.stack([layer, torch.ones(2, 4)])]) == 0.25  # each of an ensemble by its own mean
    assert dormant_share([torch.zeros(3, 5)]) == 1
    assert dormant_share([]) == 0


@pytest.mark.parametrize("ensemble", [None, 2])
def test_statistics_of_a_body_count_the_units_of_all_layers(ensemble):
    torch.manual_seed(0)
    body, x = MlpBodyConfig(width=8, depth=2).build(3, ensemble), torch.randn(64, 3)
    alive = unit_statistics(body, x)
    with torch.no_grad():
        body.layers[1].weight.zero_()
        body.layers[1].bias.zero_()
        body.layers[1].bias[..., 0] = 1  # of the last layer one unit speaks, always the same
    found = unit_statistics(body, x)
    assert found.effective_rank == 1 < alive.effective_rank
    silent = dormant_share([body.layers[0](x).relu()]) * 8  # of the first layer
    assert found.dormant_share == pytest.approx((silent + 7) / 16)
    assert not any(module._forward_hooks for module in body.modules())


def test_dense_bodies_keep_the_rank_of_their_input():
    torch.manual_seed(0)
    x = torch.randn(200, 6)
    dense, plain = DenseMlpBodyConfig(width=64).build(6), MlpBodyConfig(width=64, activation="silu").build(6)
    assert unit_statistics(dense, x).effective_rank > unit_statistics(plain, x).effective_rank
