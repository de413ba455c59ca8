"""Rounding to powers of two: natural compression, biased rounding and exponential dithering.

- ``natural`` (Horvath et al. 2019, arXiv:1905.10988): up or down at random so that the mean is kept; omega = 1/8.
- ``biased_rounding`` (Beznosikov et al. 2020, arXiv:2002.12410, sec. 2): to the nearest; for the grid r^k it
  contracts with 1/delta = (r + 1)^2 / (4 r), 9/8 for r = 2.
- ``exponential_dithering`` (ibid.): natural compression of x / max |x|, with s = 2^(bits - 1) - 1 levels, and linear
  dithering below the smallest.

Payload, version 1: the first two write, for each block of 512 values, the exponent field of float32 (a byte a value),
then the sign bits packed (``kernels.packing``): 9 bits a value. The last writes one float32 scale a bucket, then
packed codes: the level from 0 to s, and above it a sign bit.
"""

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field
from torch import Tensor

from hpcopt import kernels
from hpcopt.compress.codec import Bytes, Codec, Floats, require_bytes, require_finite
from hpcopt.compress.scaled_codes import BLOCK, ScaledCodes, packed_bytes, small_value_variance
from hpcopt.kernels import cuda
from hpcopt.kernels.cut import Cut

POWER_127 = 0x7F000000  # the bits of 2^127: magnitudes from there on could round up to Inf


class _PowersOfTwo(Codec):
    """What natural compression and biased rounding share: 9 bits a value, and the refusal of magnitudes from 2^127
    on.
    """

    on_device: ClassVar[bool] = True

    @property
    def in_parts(self) -> bool:
        return True

    def max_bytes(self, n: int) -> int:
        """Exact."""
        return n + packed_bytes(n, 1)

    def gain(self, n: int) -> float:
        """Up to the next power of two."""
        return 2.0

    def _round(self, x: Floats, nearest: bool, seed: int, first: int, payload: Bytes) -> int:
        require_finite(kernels.powers.encode(x, nearest, seed, first, payload), self, POWER_127)
        return payload.size

    def _decode(self, payload: Bytes, out: Floats, weight: float, add: bool) -> None:
        require_bytes(payload, self.max_bytes(out.size), self)
        kernels.powers.decode(payload, np.float32(weight), add, out)

    def _decode_parts(self, slots: Tensor, cut: Cut, out: Tensor, weight: float, add: bool) -> None:
        cuda.powers.decode(slots, cut, weight, add, out)


class Natural(_PowersOfTwo):
    """Stochastic rounding to a power of two."""

    name: Literal["natural"] = "natural"

    def variance(self, n: int) -> float:
        """1/8, reached at x = 4/3 of a power of two."""
        return 1 / 8

    def _encode(self, x: Floats, seed: int, first: int, payload: Bytes) -> int:
        return self._round(x, False, seed, first, payload)

    def _encode_parts(self, x: Tensor, cut: Cut, slots: Tensor, seed: int, first: int, worst: Tensor) -> None:
        cuda.powers.encode(x, cut, slots, False, seed, first, worst)


class BiasedRounding(_PowersOfTwo):
    """Rounding to the nearest power of two, halves up."""

    name: Literal["biased_rounding"] = "biased_rounding"

    def contraction(self, n: int) -> float:
        """8/9: the worst value is 1.5 times a power of two, off by a third of itself."""
        return 8 / 9

    def _encode(self, x: Floats, seed: int, first: int, payload: Bytes) -> int:
        return self._round(x, True, seed, first, payload)

    def _encode_parts(self, x: Tensor, cut: Cut, slots: Tensor, seed: int, first: int, worst: Tensor) -> None:
        cuda.powers.encode(x, cut, slots, True, seed, first, worst)


class ExponentialDithering(ScaledCodes):
    """Levels at powers of two below the largest magnitude of the bucket."""

    name: Literal["exponential_dithering"] = "exponential_dithering"
    bits: int = Field(4, ge=2, le=6, description="a value, sign included")
    bucket: int = Field(512, gt=0, multiple_of=BLOCK, description="values that share a scale")

    def variance(self, n: int) -> float:
        """At most 1/8, and what the values below the smallest level add."""
        levels = (1 << (self.bits - 1)) - 1
        return 1 / 8 + small_value_variance(2.0 ** (levels - 1), min(n, self.bucket) - 1)

    def _layout(self) -> tuple[int, int]:
        return self.bucket, self.bits

    def _fill(self, x: Floats, seed: int, first: int, scales: Floats, codes: Bytes) -> int:
        worst: int = kernels.powers.dither(x, *self._layout(), seed, first, scales, codes)
        return worst

    def _read(self, scales: Floats, codes: Bytes, weight: float, add: bool, out: Floats) -> None:
        kernels.powers.undither(scales, codes, *self._layout(), np.float32(weight), add, out)

    def _encode_parts(self, x: Tensor, cut: Cut, slots: Tensor, seed: int, first: int, worst: Tensor) -> None:
        cuda.powers.dither(x, cut, slots, *self._layout(), seed, first, worst)

    def _decode_parts(self, slots: Tensor, cut: Cut, out: Tensor, weight: float, add: bool) -> None:
        cuda.powers.undither(slots, cut, *self._layout(), weight, add, out)
