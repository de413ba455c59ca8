"""LAMB against the plain formulas of arXiv:1904.00962, algorithm 2, in numpy and float64."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from hpcopt.optim import lamb
from hpcopt.optim.lamb import Lamb, LambConfig


def oracle(x, gradients, *, lr, betas, eps, decay):
    """One parameter's way through a list of gradients."""
    m, v = np.zeros_like(x), np.zeros_like(x)
    for t, g in enumerate(gradients, 1):
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        r = (m / (1 - betas[0] ** t)) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
        u = r + decay * x if x.ndim > 1 else r
        trust = np.linalg.norm(x) / np.linalg.norm(u) if x.ndim > 1 and np.linalg.norm(x) > 0 else 1.0
        x = x - lr * trust * u
    return x


def test_equals_the_formulas():
    torch.manual_seed(0)
    tensors = [nn.Parameter(torch.randn(*shape, dtype=torch.float64)) for shape in [(4, 3), (5,), (2, 2, 3)]]
    tensors.append(nn.Parameter(torch.zeros(3, 2, dtype=torch.float64)))  # norm zero: the ratio is one
    starts = [p.detach().numpy().copy() for p in tensors]
    gradients = [[torch.randn_like(p) for p in tensors] for _ in range(5)]
    optimizer = LambConfig(lr=0.05, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1).build(tensors)
    for step in gradients:
        for p, g in zip(tensors, step, strict=True):
            p.grad = g.clone()
        optimizer.step()
    for i, (p, start) in enumerate(zip(tensors, starts, strict=True)):
        expected = oracle(
            start, [step[i].numpy() for step in gradients], lr=0.05, betas=(0.8, 0.95), eps=1e-3, decay=0.1
        )
        np.testing.assert_allclose(p.detach().numpy(), expected, rtol=1e-12)


def test_the_state_comes_back_bit_for_bit():
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(6, 4))
    optimizer = Lamb([p], lr=0.1)
    gradients = torch.randn(6, 6, 4)
    for g in gradients[:3]:
        p.grad = g
        optimizer.step()
    q = nn.Parameter(p.detach().clone())
    resumed = Lamb([q], lr=0.1)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for g in gradients[3:]:
        p.grad, q.grad = g, g.clone()
        optimizer.step()
        resumed.step()
    assert torch.equal(p, q)


def test_a_step_does_not_depend_on_the_scale_of_the_gradient():
    torch.manual_seed(0)
    start, g = torch.randn(5, 5), torch.randn(5, 5)
    ends = []
    for scale in (1.0, 1000.0):
        p = nn.Parameter(start.clone())
        p.grad = scale * g
        Lamb([p], lr=0.1, eps=1e-12).step()
        ends.append(p.detach())
    torch.testing.assert_close(*ends)


def test_the_ratio_is_the_same_where_it_is_not_read():
    generator = torch.Generator().manual_seed(0)
    for p in (torch.randn(5, 7, generator=generator), torch.zeros(5, 7)):
        for update in (torch.randn(5, 7, generator=generator), torch.zeros(5, 7)):
            assert float(lamb._unread_ratio(p, update)) == pytest.approx(lamb._ratio(p, update), rel=1e-6)
