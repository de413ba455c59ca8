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

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from hpcopt import kernels
from hpcopt.compress.codec import Bytes, Codec, Floats, require_bytes, require_finite
from hpcopt.kernels import cuda

BLOCK = 512  # values packed together; the layout of a block is in kernels.packing


def packed_bytes(n: int, bits: int) -> int:
    """Bytes that n codes of ``bits`` bits fill: block by block, each field of a block rounded up to whole bytes."""
    blocks, rest = divmod(n, BLOCK)
    return blocks * BLOCK // 8 * bits + sum(-(-rest * width // 8) for width in (8, 4, 2, 1) if bits & width)


def small_value_variance(levels: float, m: int) -> float:
    """The largest ``sum f (1 - f) / (levels^2 + sum f^2)`` over f in [0, 1]^m.

    It is the worst relative variance of a bucket that holds its own scale, at ``levels`` times the smallest level,
    and m values below the smallest level. All f are then equal, and setting the derivative to zero gives f = sqrt(a^2
    + a) - a with a = levels^2 / m.
    """
    if m <= 0:
        return 0.0
    a = levels * levels / m
    f = a / (math.sqrt(a * a + a) + a)
    return (1 - 2 * f) / (2 * f)


class QSGD(Codec):
    """Uniform levels between -N and N."""

    name: Literal["qsgd"] = "qsgd"
    bits: int = Field(4, ge=2, le=8, description="a value, sign included")
    bucket: int = Field(512, gt=0, multiple_of=BLOCK, description="values that share a scale")
    norm: Literal["max", "l2"] = Field(
        "max", description="what the scale is: the largest magnitude, or the 2-norm of the paper"
    )

    @property
    def levels(self) -> int:
        """The s of the paper."""
        return (1 << (self.bits - 1)) - 1

    def variance(self, n: int) -> float:
        """``min(n / s^2, sqrt(n) / s)`` for "l2" (the paper's theorem 3.2); the exact supremum for "max"; n at most
        the bucket.
        """
        n, s = min(n, self.bucket), self.levels
        return min(n / s**2, math.sqrt(n) / s) if self.norm == "l2" else small_value_variance(s, n - 1)

    def max_bytes(self, n: int) -> int:
        """Exact."""
        return 4 * self._buckets(n) + packed_bytes(n, self.bits)

    def _encode(self, x: Floats, seed: int, first: int, payload: Bytes) -> int:
        scales, codes = self._parts(payload, x.size)
        worst = kernels.qsgd.encode(x, self.bucket, self.bits, self.norm == "l2", 0.0, seed, first, scales, codes)
        require_finite(worst, self)
        return payload.size

    def _decode(self, payload: Bytes, out: Floats, weight: float, add: bool) -> None:
        require_bytes(payload, self.max_bytes(out.size), self)
        scales, codes = self._parts(payload, out.size)
        kernels.qsgd.decode(scales, codes, self.bucket, self.bits, weight, add, out)

    def _encode_on_device(self, x: Tensor, seed: int, first: int, payload: Tensor) -> int:
        scales, codes = self._parts_on_device(payload, x.numel())
        worst = cuda.qsgd.encode(x, self.bucket, self.bits, self.norm == "l2", 0.0, seed, first, scales, codes)
        require_finite(worst, self)
        return payload.numel()

    def _decode_on_device(self, payload: Tensor, out: Tensor, weight: float, add: bool) -> None:
        require_bytes(payload, self.max_bytes(out.numel()), self)
        scales, codes = self._parts_on_device(payload, out.numel())
        cuda.qsgd.decode(scales, codes, self.bucket, self.bits, weight, add, out)

    def _buckets(self, n: int) -> int:
        return -(-n // self.bucket)

    def _parts(self, payload: Bytes, n: int) -> tuple[Floats, Bytes]:
        split = 4 * self._buckets(n)
        return payload[:split].view(np.float32), payload[split : self.max_bytes(n)]

    def _parts_on_device(self, payload: Tensor, n: int) -> tuple[Tensor, Tensor]:
        split = 4 * self._buckets(n)
        return payload[:split].view(torch.float32), payload[split : self.max_bytes(n)]
