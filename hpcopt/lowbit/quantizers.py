"""Unbiased quantizers of a matrix in few bits, by stochastic rounding (Chen et al. 2020, arXiv:2010.14298).

Of a matrix G, (N, D), with ``B = 2^bits - 1`` and ``R`` the largest minus the smallest value::

    PTQ    one step R(G) / B for all                     variance <= N D / (4 B^2) R(G)^2
    PSQ    one step R(G_i) / B for each row              variance <= D / (4 B^2) sum_i R(G_i)^2
    BHQ    PSQ of S G, then S^-1 of the result           see hpcopt.lowbit.reflection

A value x becomes the integer ``floor(y)`` or one more, with probability ``y - floor(y)``, of ``y = (x - zero) / step``.
The mean over draws is G; the variance is the sum over all values of their expected squared errors.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hpcopt import kernels
from hpcopt.compress import BHQ, PSQ, Codec
from hpcopt.errors import NonFiniteError
from hpcopt.lowbit.reflection import GroupedReflection

Kind = Literal["ptq", "psq", "bhq"]
CODEC_BITS = range(2, 9)
MOST_MIXED = 65536  # rows


@dataclass(frozen=True)
class Grid:
    """Where the values of a matrix may lie after rounding.

    Attributes:
        bits: of an integer.
        zero, step: of each row, (N, 1), or of all, (1, 1); float32, or float64 as the matrix.
        reflection: which mixes rows before they are rounded; None for PTQ and PSQ.
    """

    bits: int
    zero: Tensor
    step: Tensor
    reflection: GroupedReflection | None = None

    @property
    def top(self) -> int:
        """B, the largest integer."""
        return int(2**self.bits - 1)

    def exact(self, g: Tensor) -> Tensor:
        """The real numbers in [0, B], (N, D), that are to be rounded."""
        mixed = g if self.reflection is None else self.reflection.apply(g)
        y = (mixed - self.zero) / self.step.where(self.step > 0, 1.0)
        return y.clamp(max=self.top)

    def values(self, integers: Tensor) -> Tensor:
        """The matrix that integers, (N, D), of any dtype, stand for."""
        mixed = integers.to(self.step.dtype) * self.step + self.zero
        return mixed if self.reflection is None else self.reflection.undo(mixed)

    def variance(self, g: Tensor) -> Tensor:
        """The variance that rounding of g adds, exactly, (), float64."""
        part = self.exact(g).double().frac()
        rows = (part * (1 - part) * self.step.double().square()).sum(1)
        return (rows if self.reflection is None else rows * self.reflection.column_norms()).sum()


def grid(g: Tensor, kind: Kind, bits: int) -> Grid:
    """Lay the grid for a matrix.

    Args:
        g: (N, D), N > 0 and D > 0, float32 or float64.
        kind: of the quantizer.
        bits: 1 to 16.

    >>> g = torch.tensor([[0.0, 3.0], [1.0, 1.0]])
    >>> [grid(g, kind, bits=2).step.flatten().tolist() for kind in ("ptq", "psq")]
    [[1.0], [1.0, 0.0]]
    """
    if kind == "ptq":
        low, high = (end.view(1, 1) for end in g.aminmax())
        return Grid(bits, low, (high - low) / (2**bits - 1))
    reflection = None
    if kind == "bhq":
        low, high = g.aminmax(dim=1)
        reflection = GroupedReflection.for_ranges(high - low)
    low, high = (g if reflection is None else reflection.apply(g)).aminmax(dim=1, keepdim=True)
    return Grid(bits, low, (high - low) / (2**bits - 1), reflection)


def rounded(y: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """``floor(y)`` or one more, so that the mean is y.

    >>> mean = rounded(torch.tensor([2.0, 0.25]).expand(10_000, 2)).mean(0)
    >>> torch.allclose(mean, torch.tensor([2.0, 0.25]), atol=0.05)
    True
    """
    low = y.floor()
    return low + (torch.rand(y.shape, generator=generator, dtype=y.dtype, device=y.device) < y - low)


def quantized(g: Tensor, kind: Kind, bits: int, generator: torch.Generator | None = None) -> Tensor:
    """A matrix, (N, D), in few bits: what is left of it after it was written as integers. NaN and Inf give NaN.

    Float32 in main memory goes through the codec of the same name, whose draws follow from one seed.
    """
    if not g.numel():
        return g
    if by_codec(g, bits):
        return _through_codec(g.contiguous(), kind, bits, generator)
    found = grid(g, kind, bits)
    return found.values(rounded(found.exact(g), generator))


def nearest(g: Tensor, bits: int) -> Tensor:
    """A matrix, (N, D), each row to the nearest of 2^bits values from its smallest to its largest. NaN and Inf give
    NaN.

    >>> nearest(torch.tensor([[0.0, 1.4, 3.0], [5.0, 5.0, 5.0]]), bits=2).tolist()
    [[0.0, 1.0, 3.0], [5.0, 5.0, 5.0]]
    """
    if g.dtype == torch.float32 and g.is_cpu:
        source = g.detach().contiguous()
        out = torch.empty_like(source)
        kernels.rows.nearest(source.view(-1).numpy(), g.shape[1], bits, out.view(-1).numpy())
        return out
    return nearest_between(g, *g.aminmax(dim=1, keepdim=True), bits)


def nearest_between(x: Tensor, low: Tensor, high: Tensor, bits: int) -> Tensor:
    """Each value, from low to high, to the nearest of 2^bits values from low to high."""
    step = (high - low) / (2**bits - 1)
    found: Tensor = ((x - low) / step.where(step > 0, 1.0)).round() * step + low
    return found


def by_codec(g: Tensor, bits: int) -> bool:
    """Whether a codec rounds this matrix."""
    return g.dtype == torch.float32 and g.is_cpu and bits in CODEC_BITS


def _through_codec(g: Tensor, kind: Kind, bits: int, generator: torch.Generator | None) -> Tensor:
    """Encoded and decoded."""
    rows, columns = g.shape
    codec: Codec = PSQ(bits=bits, columns=g.numel() if kind == "ptq" else columns)
    if kind == "bhq":
        codec = BHQ(bits=bits, columns=columns, height=min(rows, MOST_MIXED))
    seed = int(torch.randint(2**62, (), generator=generator))
    flat = g.detach().view(-1)
    try:
        return codec.decode(codec.encode(flat, seed=seed), g.numel()).view_as(g)
    except NonFiniteError:
        return torch.full_like(g, torch.nan)
