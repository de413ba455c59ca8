"""Payloads of a float32 scale a bucket, then packed codes of a few bits: those of QSGD, TernGrad and dithering."""

import math
from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np
import torch
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


class ScaledCodes(Codec):
    """What such codecs share. Their loops take the same arguments in ``hpcopt.kernels`` and ``hpcopt.kernels.cuda``."""

    on_device: ClassVar[bool] = True

    @abstractmethod
    def _layout(self) -> tuple[int, int]:
        """Values that share a scale, and bits of a code."""

    @abstractmethod
    def _fill(self, loops: Any, x: Any, seed: int, first: int, scales: Any, codes: Any) -> int:
        """Encode x by the loops of one of the two packages; give the bits of the largest magnitude."""

    @abstractmethod
    def _read(self, loops: Any, scales: Any, codes: Any, weight: float, add: bool, out: Any) -> None:
        """Decode likewise: out = weight times the values, added to what is there if ``add``."""

    def max_bytes(self, n: int) -> int:
        """Exact."""
        return self._scale_bytes(n) + packed_bytes(n, self._layout()[1])

    def _encode(self, x: Floats, seed: int, first: int, payload: Bytes) -> int:
        require_finite(self._fill(kernels, x, seed, first, *self._parts(payload, x.size)), self)
        return payload.size

    def _decode(self, payload: Bytes, out: Floats, weight: float, add: bool) -> None:
        require_bytes(payload, self.max_bytes(out.size), self)
        self._read(kernels, *self._parts(payload, out.size), weight, add, out)

    def _encode_on_device(self, x: Tensor, seed: int, first: int, payload: Tensor) -> int:
        require_finite(self._fill(cuda, x, seed, first, *self._parts_on_device(payload, x.numel())), self)
        return payload.numel()

    def _decode_on_device(self, payload: Tensor, out: Tensor, weight: float, add: bool) -> None:
        require_bytes(payload, self.max_bytes(out.numel()), self)
        self._read(cuda, *self._parts_on_device(payload, out.numel()), weight, add, out)

    def _scale_bytes(self, n: int) -> int:
        return 4 * -(-n // self._layout()[0])

    def _parts(self, payload: Bytes, n: int) -> tuple[Floats, Bytes]:
        split = self._scale_bytes(n)
        return payload[:split].view(np.float32), payload[split : self.max_bytes(n)]

    def _parts_on_device(self, payload: Tensor, n: int) -> tuple[Tensor, Tensor]:
        split = self._scale_bytes(n)
        return payload[:split].view(torch.float32), payload[split : self.max_bytes(n)]
