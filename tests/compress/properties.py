"""What every codec promises, as functions that raise AssertionError; the mutation tests run them on damaged kernels."""

import math

import numpy as np
import torch
from torch import Tensor

from hpcopt.compress import (
    QSGD,
    AdaComp,
    AdaptiveRandom,
    Atomo,
    BiasedRounding,
    Codec,
    Dense,
    ExponentialDithering,
    Half,
    Natural,
    RandomK,
    Sign,
    SignBits,
    TernGrad,
    TopK,
)
from hpcopt.compress.atomo import probabilities

CODECS: list[Codec] = [
    Dense(),
    Half(),
    Half(format="fp16"),
    Sign(),
    Sign(bucket=1024),
    SignBits(),
    *(QSGD(bits=bits) for bits in range(2, 9)),
    QSGD(bucket=1024),
    QSGD(norm="l2"),
    TernGrad(),
    TernGrad(clip=2.5),
    Natural(),
    BiasedRounding(),
    ExponentialDithering(),
    ExponentialDithering(bits=6, bucket=1024),
    TopK(),
    TopK(threshold="sampled", fraction=0.1),
    TopK(fraction=0.1, values=QSGD(bits=8)),
    TopK(fraction=0.1, values=ExponentialDithering(bits=5)),
    RandomK(fraction=0.1),
    RandomK(fraction=0.4),  # of 7: 3, which does not divide it
    RandomK(fraction=0.1, scaled=False),
    AdaptiveRandom(),
    AdaComp(bin=50),
    AdaComp(bin=500),
    Atomo(basis="entries", share=0.2),
    Atomo(basis="fourier", share=0.2),
    Atomo(basis="svd", share=0.4),
]


def label(codec: Codec) -> str:
    """The codec and those of its settings that are not the defaults."""
    settings = codec.model_dump(exclude_defaults=True, exclude={"name"})
    return "-".join([codec.name, *(f"{key}={value}" for key, value in settings.items())])


def gaussian(n: int, seed: int = 0) -> Tensor:
    """Values as gradients have them: Gaussian, of scales that differ by stretches."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.exp(torch.randn(-(-n // 64), generator=generator)).repeat_interleave(64)[:n]
    return torch.randn(n, generator=generator) * scale


def hard_cases(n: int) -> list[Tensor]:
    """Inputs that come near a codec's bounds."""
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


def draws(codec: Codec, x: Tensor, count: int) -> Tensor:
    """Decoded payloads of x for seeds 0, 1, ..., shape (count, n), float64."""
    return torch.stack([codec.decode(codec.encode(x, seed=seed), x.numel()).double() for seed in range(count)])


def check_mean(codec: Codec, x: Tensor, count: int = 3000) -> None:
    """The mean over seeds is x: along x, its signs, ones and random directions, and in every coordinate of a short
    x.
    """
    n = x.numel()
    generator = torch.Generator().manual_seed(1)
    directions = [
        x.double(),
        x.sign().double(),
        torch.ones(n).double(),
        *torch.randn(12, n, generator=generator).double(),
    ]
    directions += list(torch.eye(n).double()) if n < 10 else []
    projected = (draws(codec, x, count) - x.double()) @ torch.stack(directions).T
    error = projected.std(0) / math.sqrt(count)
    rounding = 2e-7 * x.double().abs() @ torch.stack(directions).abs().T
    assert (projected.mean(0).abs() <= 4 * error + rounding).all(), f"{label(codec)}: biased"


def check_variance(codec: Codec, x: Tensor, count: int = 3000) -> None:
    """The mean squared error over seeds is the formula's, within 5 standard errors."""
    squares = (draws(codec, x, count) - x.double()).square().sum(1)
    expected = exact_variance(codec, x.double().numpy())
    error = squares.std() / math.sqrt(count)
    assert abs(squares.mean() - expected) <= 5 * error + 1e-6 * expected + 1e-12, f"{label(codec)}: variance"


def exact_variance(codec: Codec, x: np.ndarray) -> float:
    """``E |C(x) - x|^2`` by the formula of the codec's paper."""
    size = np.abs(x)
    match codec:
        case QSGD() | TernGrad() | ExponentialDithering():
            parts = [size[i : i + codec.bucket] for i in range(0, x.size, codec.bucket)]
            return sum(float(_grid_variance(codec, part)) for part in parts if part.any())
        case Natural():
            low = 2.0 ** np.floor(np.log2(size, where=size > 0, out=np.zeros_like(size)))
            return float(((size - low) * (2 * low - size))[size > 0].sum())
        case RandomK(scaled=True):
            return float((x.size / codec.k(x.size) - 1) * (x**2).sum())
        case AdaptiveRandom():
            parts = [size[i : i + codec.bucket] for i in range(0, x.size, codec.bucket)]
            return sum(float((p**2).sum() - (p**3).sum() / p.sum()) for p in parts if p.any())
        case Atomo():
            if codec.basis == "entries":
                atoms = size
            elif codec.basis == "svd":
                rows, columns = codec._shape(x.size)
                atoms = np.linalg.svd(np.pad(x, (0, rows * columns - x.size)).reshape(rows, columns), compute_uv=False)
            else:
                spectrum = np.abs(np.fft.rfft(x, norm="ortho"))
                spectrum[1 : (x.size + 1) // 2] *= math.sqrt(2)
                atoms = spectrum
            p = probabilities(atoms, codec.budget(x.size))
            return float((atoms[p > 0] ** 2 / p[p > 0]).sum() - (atoms**2).sum())
    raise NotImplementedError(codec.name)


def _grid_variance(codec: QSGD | TernGrad | ExponentialDithering, size: np.ndarray) -> float:
    if isinstance(codec, ExponentialDithering):
        steps = 2.0 ** np.arange(-((1 << (codec.bits - 1)) - 2), 1)
        grid = size.max() * np.concatenate([[0], steps])
        upper = np.minimum(np.searchsorted(grid, size, side="right"), grid.size - 1)
        return ((size - grid[upper - 1]) * (grid[upper] - size)).sum()
    levels = codec.levels if isinstance(codec, QSGD) else 1
    scale = np.sqrt((size**2).sum()) if isinstance(codec, QSGD) and codec.norm == "l2" else size.max()
    part = np.modf(size * levels / scale)[0]
    return (scale / levels) ** 2 * (part * (1 - part)).sum()


def check_bound(codec: Codec, x: Tensor, count: int = 200) -> None:
    """Contraction and variance bounds hold on x, within 4 standard errors (deterministic codecs: to rounding)."""
    squares = (draws(codec, x, count) - x.double()).square().sum(1)
    noise = 4 * float(squares.std()) / math.sqrt(count)
    whole = float(x.double().square().sum())
    delta, omega = codec.contraction(x.numel()), codec.variance(x.numel())
    for bound in ([] if delta is None else [1 - delta]) + ([] if omega is None else [omega]):
        assert squares.mean() <= bound * whole * (1 + 1e-5) + noise, (
            f"{label(codec)}: {squares.mean() / whole} > {bound}"
        )


def check_telescoping(codec: Codec, steps: int = 30, n: int = 1300) -> None:
    """With error feedback, what was sent and what is owed add up to what came in."""
    residual, came, sent = torch.zeros(n), torch.zeros(n).double(), torch.zeros(n).double()
    for step in range(steps):
        x = gaussian(n, seed=step)
        payload = codec.encode_feedback(x, residual, seed=step)
        came += x
        sent += codec.decode(payload, n)
    # each step rounds values of the size of x, of the residual and of what is sent
    assert (sent + residual - came).abs().max() <= 1e-5 * max(1.0, float(sent.abs().max())), (
        f"{label(codec)}: lost something"
    )
