"""Payloads of a float32 scale a bucket, then packed codes of a few bits: those of QSGD, TernGrad and dithering."""

import math
from abc import abstractmethod
from typing import ClassVar

import numpy as np

from hpcopt.compress.codec import Bytes, Codec, Floats, require_bytes, require_finite

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


class ScaledCodes(Codec):
    """What such codecs share."""

    on_device: ClassVar[bool] = True

    @property
    def in_parts(self) -> bool:
        return True

    @abstractmethod
    def _layout(self) -> tuple[int, int]:
        """Values that share a scale, and bits of a code."""

    @abstractmethod
    def _fill(self, x: Floats, seed: int, first: int, scales: Floats, codes: Bytes) -> int:
        """Encode x; give the bits of the largest magnitude."""

    @abstractmethod
    def _read(self, scales: Floats, codes: Bytes, weight: float, add: bool, out: Floats) -> None:
        """Decode: out = weight times the values, added to what is there if ``add``."""

    def max_bytes(self, n: int) -> int:
        """Exact."""
        return self._scale_bytes(n) + packed_bytes(n, self._layout()[1])

    def _encode(self, x: Floats, seed: int, first: int, payload: Bytes) -> int:
        require_finite(self._fill(x, seed, first, *self._parts(payload, x.size)), self)
        return payload.size

    def _decode(self, payload: Bytes, out: Floats, weight: float, add: bool) -> None:
        require_bytes(payload, self.max_bytes(out.size), self)
        self._read(*self._parts(payload, out.size), weight, add, out)

    def _scale_bytes(self, n: int) -> int:
        return 4 * -(-n // self._layout()[0])

    def _parts(self, payload: Bytes, n: int) -> tuple[Floats, Bytes]:
        split = self._scale_bytes(n)
        return payload[:split].view(np.float32), payload[split : self.max_bytes(n)]
