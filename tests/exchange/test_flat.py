"""A backward pass writes into the flat buffer, and adds up there."""

import pytest
import torch
from torch import nn

from hpcopt.exchange.flat import FlatGradients


def test_backward_fills_the_buffer_and_accumulates():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    gradients = FlatGradients(list(model.parameters()))
    x = torch.randn(5, 3)
    expected = torch.autograd.grad(model(x).sum(), model.parameters())
    gradients.zero()
    for _ in range(2):
        model(x).sum().backward()
    torch.testing.assert_close(gradients.buffers[0], 2 * torch.cat([g.reshape(-1) for g in expected]))


def test_unused_and_replaced_gradients_are_zero_again():
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    gradients = FlatGradients([used, unused])
    gradients.zero()
    (3 * used).sum().backward()
    assert gradients.buffers[0].tolist() == [3, 3, 0, 0, 0]
    used.grad = torch.full((2,), 9.0)
    gradients.zero()
    used.sum().backward()
    assert gradients.buffers[0].tolist() == [1, 1, 0, 0, 0]


def test_norm_and_scale_over_dtypes():
    a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(1, dtype=torch.float64))
    gradients = FlatGradients([a, b])
    gradients.zero()
    (2 * a).sum().backward()
    b.sum().backward()
    assert gradients.norm().item() == pytest.approx(3.0)
    gradients.scale(0.5)
    assert (a.grad.tolist(), b.grad.tolist()) == ([1, 1], [0.5])
