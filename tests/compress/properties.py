"""The codecs that tests go through, and the exact variances of their papers."""

import math

import numpy as np
import torch
from torch import Tensor

from hpcopt.compress import (
    BHQ,
    PSQ,
    QSGD,
    AdaComp,
    AdaptiveRandom,
    Atomo,
    BiasedRounding,
    ChunkedTopK,
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
from hpcopt.lowbit import grid
from hpcopt.testing.codec import draws_of, label

CODECS: list[Codec] = [
    Dense(),
    Half(),
    Half(format="fp16"),
    Sign(),
    Sign(bucket=1024),
    SignBits(),
    *(QSGD(bits=bits) for bits in range(2, 9)),
    QSGD(bucket=1024),
    PSQ(),
    PSQ(bits=5, columns=27),
    PSQ(bits=8, columns=10_000),
    BHQ(),
    BHQ(bits=2, columns=50, height=4),
    BHQ(bits=8, columns=9),
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
    ChunkedTopK(),
    ChunkedTopK(bucket=512, k=20),
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


def check_variance(codec: Codec, x: Tensor, count: int = 3000) -> None:
    """The mean squared error over seeds is the formula's, within 5 standard errors."""
    squares = (draws_of(codec, x, count) - x.double()).square().sum(1)
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
        case PSQ() | BHQ():
            return _rows_variance(codec, x)
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


def _rows_variance(codec: PSQ | BHQ, x: np.ndarray) -> float:
    """By the grids of ``hpcopt.lowbit``, block by block; a short last row is a block of its own."""
    whole = x.size - x.size % codec.bucket
    mixed = codec.height * codec.bucket if isinstance(codec, BHQ) else codec.bucket
    blocks = [x[i : min(i + mixed, whole)].reshape(-1, codec.bucket) for i in range(0, whole, mixed)]
    blocks += [x[None, whole:]] if whole < x.size else []
    return sum(float(grid(g, codec.name, codec.bits).variance(g)) for g in map(torch.from_numpy, blocks))
