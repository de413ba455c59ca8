"""Signum against its two lines of the paper, in numpy."""

import numpy as np
import pytest
import torch
from torch import nn

from hpcopt.comm import vote
from hpcopt.optim.signum import Signum, SignumConfig


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_steps_are_the_papers(momentum, decay):
    generator = torch.Generator().manual_seed(0)
    p = torch.nn.Parameter(torch.randn(3, 5, generator=generator))
    x, m = p.detach().numpy().copy(), np.zeros((3, 5), np.float32)
    optimizer = Signum([p], lr=0.01, momentum=momentum, weight_decay=decay)
    for _ in range(6):
        p.grad = torch.randn(3, 5, generator=generator)
        m = momentum * m + (1 - momentum) * p.grad.numpy()
        x = x * (1 - 0.01 * decay) - 0.01 * np.where(m < 0, -1, 1)
        optimizer.step()
        np.testing.assert_allclose(p.detach().numpy(), x, rtol=1e-5, atol=1e-6)


def test_zero_counts_as_plus():
    p = torch.nn.Parameter(torch.zeros(2))
    p.grad = torch.tensor([0.0, -0.0])
    Signum([p], lr=1.0, momentum=0.0).step()
    assert p.tolist() == [-1.0, -1.0]


def test_only_matrices_decay():
    weight, bias = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))
    optimizer = SignumConfig(lr=0.5, momentum=0.0, weight_decay=1.0).build([weight, bias])
    weight.grad, bias.grad = torch.ones(2, 2), torch.ones(2)
    optimizer.step()
    assert weight[0, 0].item() == 0.0
    assert bias[0].item() == 0.5


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("n", [0, 1, 63, 64, 65, 1000])
def test_packed_signs_make_the_same_step_bit_for_bit(n, decay):
    generator = torch.Generator().manual_seed(n)
    g, x = torch.randn(n, generator=generator), torch.randn(n, generator=generator)
    g[::7], g[3::11] = 0.0, -0.0
    x[::5] *= 1e-40  # subnormal
    if n > 100:
        x[5], x[6], x[7], g[9] = float("inf"), float("-inf"), float("nan"), float("nan")
    words = torch.zeros(-(-n // 64), dtype=torch.int64)
    vote.pack(g, words)
    plain, packed = nn.Parameter(x.clone()), nn.Parameter(x.clone())
    plain.grad = g
    Signum([plain], lr=0.013, momentum=0.0, weight_decay=decay).step()
    Signum([packed], lr=0.013, momentum=0.0, weight_decay=decay, outcome=lambda _p: words).step()
    assert torch.equal(plain.detach().view(torch.int32), packed.detach().view(torch.int32))


def test_packed_signs_of_a_parameter_that_is_not_contiguous():
    words = torch.tensor([0b100110], dtype=torch.int64)
    p = nn.Parameter(torch.zeros(2, 3).t())
    Signum([p], lr=1.0, outcome=lambda _p: words).step()
    assert p.flatten().tolist() == [-1, 1, 1, -1, -1, 1]


def test_packed_signs_leave_a_frozen_parameter_alone():
    frozen = nn.Parameter(torch.zeros(3), requires_grad=False)
    Signum([frozen], lr=1.0, outcome=lambda _p: torch.tensor([0b101], dtype=torch.int64)).step()
    assert not frozen.any()
