"""Proximal steps against a search for the minimum."""

import itertools

import pytest
import torch

from hpcopt.models.nondifferentiable import Sign, TopK


def test_sign():
    assert Sign()(torch.tensor([-2.0, 0.0, 3.0])).tolist() == [-1, 1, 1]
    assert Sign()(torch.zeros(2, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("ratio", [0.1, 1.0, 10.0])
def test_the_proximal_step_of_sign_minimises_its_bound(ratio):
    anchor, target = torch.randn(2, 200, dtype=torch.float64)
    z = Sign().proximal(anchor, target, ratio)
    d = target - anchor.sign()

    def bound(z):
        return ratio * (2 * d.abs() * (1 - d.sign() * z).clamp_min(0) - d.abs()) + 0.5 * (z - anchor) ** 2

    grid = torch.linspace(-6, 6, 4001, dtype=torch.float64)[:, None]
    assert bool((bound(z) <= bound(grid).amin(0) + 1e-9).all())
    assert bool((bound(grid) - ratio * d.abs() >= -ratio * d * grid.sign() - ratio * d.abs() - 1e-9).all())


def test_a_target_that_agrees_moves_nothing():
    anchor = torch.randn(20)
    assert torch.equal(Sign().proximal(anchor, anchor.sign(), 1.0), anchor)


def test_top_k_keeps_the_largest():
    assert TopK(2)(torch.tensor([[1.0, -3.0, 2.0], [0.0, 0.5, -0.1]])).tolist() == [
        [0, -3, 2],
        [0, 0.5, pytest.approx(-0.1)],
    ]
    assert TopK(9)(torch.ones(1, 3)).tolist() == [[1, 1, 1]]


@pytest.mark.parametrize("ratio", [0.3, 4.0])
def test_the_proximal_step_of_top_k_is_the_best_support(ratio):
    torch.manual_seed(0)
    layer, anchor = TopK(2), torch.randn(50, 5, dtype=torch.float64)
    target = layer(anchor) + 0.3 * torch.randn(50, 5, dtype=torch.float64)
    z = layer.proximal(anchor, target, ratio)

    def cost(z, out):
        return 0.5 * ratio * (out - target).square().sum(1) + 0.5 * (z - anchor).square().sum(1)

    free = []  # the least cost over supports, were the others not to be the smaller ones
    for kept in itertools.combinations(range(5), 2):
        mask = torch.zeros(5, dtype=torch.bool)
        mask[list(kept)] = True
        best = torch.where(mask, (anchor + ratio * target) / (1 + ratio), anchor)
        free.append(cost(best, best * mask))
    least = torch.stack(free).amin(0)
    found = cost(z, layer(z))
    assert bool((found >= least - 1e-9).all())
    unshrunk = (z == anchor).sum(1) == 3
    assert unshrunk.sum() > 20
    torch.testing.assert_close(found[unshrunk], least[unshrunk])
    for other in (target, torch.randn(50, 5, dtype=torch.float64)):
        target = other
        z = layer.proximal(anchor, target, ratio)
        assert bool((cost(z, layer(z)) <= cost(anchor, layer(anchor)) + 1e-9).all())
