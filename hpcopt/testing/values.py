"""Flat float32 tensors to try codecs on: like gradients, near a codec's bounds, and of every kind that there is."""

import math

import numpy as np
import torch
from torch import Tensor


def gaussian(n: int, seed: int = 0) -> Tensor:
    """Values as gradients have them, (n,): Gaussian, of scales that differ by stretches."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.exp(torch.randn(-(-n // 64), generator=generator)).repeat_interleave(64)[:n]
    return torch.randn(n, generator=generator) * scale


def hard_cases(n: int) -> list[Tensor]:
    """Inputs that come near a codec's bounds on its error, each (n,)."""
    cases = [
        gaussian(n),
        torch.ones(n),
        torch.linspace(-1, 1, n),
        torch.zeros(n),
        torch.full((n,), 1.5),
        torch.full((n,), -4 / 3),
    ]
    spike = torch.full((n,), 1e-3)
    spike[n // 2 :: 300] = -5.0
    cases.append(spike)
    for levels in (1, 7, 64, 127):  # the worst for uniform levels: one value at the scale, the rest small and equal
        a = levels**2 / max(1, min(n, 512) - 1)
        worst = torch.full((n,), (math.sqrt(a * a + a) - a) / levels)
        worst[::512] = 1.0
        cases.append(worst)
    cases.append(torch.tensor([0.9**i for i in range(n)], dtype=torch.float64).float().clamp_min(1e-30))
    return cases


def every_kind(n: int, largest: float, seed: int = 0) -> list[Tensor]:
    """All kinds of finite float32 of magnitudes up to ``largest``, each (n,): any bits, subnormals, zeros of either
    sign, the largest and its neighbours.
    """
    random, top = np.random.default_rng(seed), np.float32(largest)
    top = top if top <= largest else np.nextafter(top, np.float32(0))
    bits = random.integers(0, 2**32, n, dtype=np.uint32).view(np.float32)
    signs = np.where(random.random(n) < 0.5, np.float32(-1), np.float32(1))
    tiny = np.float32(1e-45) * random.integers(0, 2**23, n).astype(np.float32)
    lone = np.where(np.arange(n) == n // 2, -top, np.float32(-0.0))
    cases = [
        np.where(np.abs(bits) <= top, bits, np.float32(-0.0)),  # NaN is not at most top
        np.full(n, top),
        top * signs,
        np.where(random.random(n) < 0.5, top, np.nextafter(top, np.float32(0))) * signs,
        top * random.standard_normal(n).clip(-1, 1).astype(np.float32),
        np.where(random.random(n) < 0.5, top, tiny) * signs,
        lone,
        tiny * signs,
        np.full(n, 1e-45, np.float32),
        np.full(n, -0.0, np.float32),
    ]
    return [torch.from_numpy(case.astype(np.float32)) for case in cases]
