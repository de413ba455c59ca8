"""RSG and ARSG against torch's SGD where they are the same, and against the paper's formulas in numpy elsewhere."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from hpcopt.optim import Arsg, ArsgConfig, Rsg, RsgConfig

SHAPES = [(4, 3), (5,), (2, 2, 3)]


def parameters(dtype=torch.float64) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(*shape, generator=generator, dtype=dtype)) for shape in SHAPES]


def walk(optimizer, tensors, steps=8, first=0) -> list[np.ndarray]:
    """Move by gradients that are a function of the step."""
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(100 + step)
        for p in tensors:
            p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
        optimizer.step()
    return [p.detach().numpy().copy() for p in tensors]


@pytest.mark.parametrize(("observation", "nesterov"), [(0.0, False), (0.2, True)])
def test_momentum_and_nesterov_are_special_cases(observation, nesterov):
    ours, torchs = parameters(), parameters()
    got = walk(Rsg(ours, lr=0.5, momentum=0.8, observation=observation), ours)
    expected = walk(torch.optim.SGD(torchs, lr=0.5 * (1 - 0.8), momentum=0.8, nesterov=nesterov), torchs)
    for x, y in zip(got, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-14)


def arsg(x, gradients, *, lr, betas, mu, eps, decay, amsgrad, restart_every):
    """One parameter's way, by the formulas."""
    m, v, largest = np.zeros_like(x), np.zeros_like(x), np.full_like(x, eps)
    for t, g in enumerate(gradients, 1):
        g = g + (decay * x if x.ndim > 1 else 0)
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        if amsgrad:
            assert (np.maximum(largest, v) >= largest).all()
            largest = np.maximum(largest, v)
            x = x - lr * ((1 - mu) * m + mu * g) / np.sqrt(largest)
            if restart_every and t % restart_every == 0:
                largest = np.maximum(v, eps)
        else:
            mean = m / (1 - betas[0] ** t)
            x = x - lr * ((1 - mu) * mean + mu * g) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
    return x


@pytest.mark.parametrize("amsgrad", [True, False])
@pytest.mark.parametrize("mode", ["fast", "fine"])
@pytest.mark.parametrize("restart_every", [None, 3])
def test_arsg_equals_the_formulas(amsgrad, mode, restart_every):
    tensors = parameters()
    starts = [p.detach().numpy().copy() for p in tensors]
    config = ArsgConfig(
        lr=0.05,
        betas=(0.9, 0.8),
        observation=0.3,
        mode=mode,
        amsgrad=amsgrad,
        restart_every=restart_every,
        weight_decay=0.1,
    )
    got = walk(config.build(tensors), tensors)
    for i, (x, start) in enumerate(zip(got, starts, strict=True)):
        gradients = []
        for step in range(8):
            generator = torch.Generator().manual_seed(100 + step)
            gradients.append([torch.randn(s, generator=generator, dtype=torch.float64) for s in SHAPES][i].numpy())
        expected = arsg(
            start,
            gradients,
            lr=0.05,
            betas=(0.9, 0.8),
            mu=0.3,
            eps={"fast": 1e-8, "fine": 1e-3}[mode],
            decay=0.1,
            amsgrad=amsgrad,
            restart_every=restart_every,
        )
        np.testing.assert_allclose(x, expected, rtol=1e-11)


def test_the_first_step_is_known():
    p = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    p.grad = torch.full((1,), 2.0, dtype=torch.float64)
    Arsg([p], lr=0.1, betas=(0.9, 0.99), observation=0.25).step()
    assert p.item() == pytest.approx(-0.1 * (0.75 * 0.2 + 0.25 * 2.0) / (0.01 * 4.0) ** 0.5, rel=1e-12)


def test_the_largest_second_moment_never_falls():
    tensors = parameters()
    optimizer = Arsg(tensors, lr=0.01, betas=(0.9, 0.5))
    largest = [torch.zeros_like(p) for p in tensors]
    for step in range(6):
        walk(optimizer, tensors, 1, step)
        now = [optimizer.state[p]["v_max"].clone() for p in tensors]
        assert all((a >= b).all() for a, b in zip(now, largest, strict=True))
        assert any((optimizer.state[p]["v"] < v).any() for p, v in zip(tensors, now, strict=True)) or step == 0
        largest = now


def test_a_restart_forgets_the_largest():
    tensors = parameters()
    optimizer = Arsg(tensors, lr=0.01, betas=(0.9, 0.5), eps=1e-4)
    walk(optimizer, tensors)
    before = [optimizer.state[p]["v_max"].clone() for p in tensors]
    optimizer.restart()
    for p, old in zip(tensors, before, strict=True):
        state = optimizer.state[p]
        assert torch.equal(state["v_max"], state["v"].clamp(min=1e-4))
        assert (state["v_max"] < old).any()


@pytest.mark.parametrize("config", [RsgConfig(weight_decay=0.1), ArsgConfig(), ArsgConfig(amsgrad=False)])
def test_the_state_comes_back_bit_for_bit(config):
    tensors = parameters(torch.float32)
    optimizer = config.build(tensors)
    walk(optimizer, tensors, 3)
    copies = [nn.Parameter(p.detach().clone()) for p in tensors]
    resumed = config.build(copies)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for x, y in zip(walk(optimizer, tensors, 3, 3), walk(resumed, copies, 3, 3), strict=True):
        np.testing.assert_array_equal(x, y)


def test_parameters_may_be_of_different_age():
    """One that is without a gradient for a step moves as if that step had not been."""
    young, old = parameters()[:1], parameters()[:1]
    both = [young[0], nn.Parameter(torch.ones(2, dtype=torch.float64))]
    optimizer = Arsg(both, amsgrad=False)
    both[1].grad = torch.ones(2, dtype=torch.float64)
    optimizer.step()
    both[1].grad = None
    np.testing.assert_array_equal(walk(optimizer, young)[0], walk(Arsg(old, amsgrad=False), old)[0])
