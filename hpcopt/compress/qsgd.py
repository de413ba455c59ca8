"""QSGD: uniform stochastic quantisation, unbiased, 2 to 8 bits a value.

Alistarh et al. 2017, arXiv:1610.02132, eq. 4: with s levels and the scale N of a bucket, ``Q(x) = N sign(x) l / s``
where l is ``|x| s / N`` rounded up or down at random so that the mean is kept.
``E |Q - x|^2 = (N / s)^2 sum f (1 - f)``, f being the fractional parts.

``norm = "max"`` (N the largest magnitude) is the default: at 4 bits and Gaussian values its variance is 46 times
smaller than that of ``norm = "l2"``, the paper's, at the same bytes.

Payload, version 1: one float32 scale a bucket, then the codes, level + s, of ``bits`` bits, packed as
``kernels.packing`` describes.
"""

import math
from typing import Literal

from pydantic import Field
from torch import Tensor

from hpcopt import kernels
from hpcopt.compress.codec import Bytes, Floats
from hpcopt.compress.scaled_codes import BLOCK, ScaledCodes, small_value_variance
from hpcopt.kernels import cuda
from hpcopt.kernels.cut import Cut


class QSGD(ScaledCodes):
    """Uniform levels between -N and N."""

    name: Literal["qsgd"] = "qsgd"
    bits: int = Field(4, ge=2, le=8, description="a value, sign included")
    bucket: int = Field(512, gt=0, multiple_of=BLOCK, description="values that share a scale")
    norm: Literal["max", "l2"] = Field(
        "max", description="what the scale is: the largest magnitude, or the 2-norm of the paper"
    )

    @property
    def levels(self) -> int:
        """The s of the paper.

        >>> import torch
        >>> codec, x = QSGD(bits=8), torch.linspace(-1, 1, 512)
        >>> payload = codec.encode(x, seed=0)
        >>> payload.numel(), codec.levels
        (516, 127)
        >>> bool((codec.decode(payload, 512) - x).abs().max() <= 1 / codec.levels)
        True
        """
        return (1 << (self.bits - 1)) - 1

    def variance(self, n: int) -> float:
        """``min(n / s^2, sqrt(n) / s)`` for "l2" (the paper's theorem 3.2); the exact supremum for "max"; n at most
        the bucket.
        """
        n, s = min(n, self.bucket), self.levels
        return min(n / s**2, math.sqrt(n) / s) if self.norm == "l2" else small_value_variance(s, n - 1)

    def gain(self, n: int) -> float:
        """With the 2-norm as scale, a value may be rounded up to it."""
        return math.sqrt(max(1, min(n, self.bucket))) if self.norm == "l2" else 1.0

    def _layout(self) -> tuple[int, int]:
        return self.bucket, self.bits

    def _fill(self, x: Floats, seed: int, first: int, scales: Floats, codes: Bytes) -> int:
        worst: int = kernels.levels.encode(x, *self._layout(), self.norm == "l2", 0.0, seed, first, scales, codes)
        return worst

    def _read(self, scales: Floats, codes: Bytes, weight: float, add: bool, out: Floats) -> None:
        kernels.levels.decode(scales, codes, *self._layout(), weight, add, out)

    def _encode_parts(self, x: Tensor, cut: Cut, slots: Tensor, seed: int, first: int, worst: Tensor) -> None:
        cuda.levels.encode(x, cut, slots, *self._layout(), self.norm == "l2", 0.0, seed, first, worst)

    def _decode_parts(self, slots: Tensor, cut: Cut, out: Tensor, weight: float, add: bool) -> None:
        cuda.levels.decode(slots, cut, *self._layout(), weight, add, out)
