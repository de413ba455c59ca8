"""One bit a value: signs, with or without their mean magnitude.

Bernstein et al. 2018, arXiv:1802.04434 (signs), Karimireddy et al. 2019, arXiv:1901.09847 (scaled, with error
feedback): with the scale ``|x|_1 / n`` of a bucket, ``|C(x) - x|^2 = |x|^2 - |x|_1^2 / n <= (1 - 1/n) |x|^2``.

Payload, version 1: ``sign`` writes one float32 scale a bucket (padded with zeros to a multiple of 8 bytes), then the
words; ``sign_bits`` only the words. Words are uint64, ceil(n / 64) of them; bit j of word k is set if value 64 k + j
is below zero. Zero of either sign is plus.
"""

from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from hpcopt import kernels
from hpcopt.compress.codec import Bytes, Codec, Floats, require_bytes, require_finite
from hpcopt.kernels import cuda
from hpcopt.kernels.cut import Cut


class SignBits(Codec):
    """Plain signs, decoded to +-1: the ballot of a majority vote (``kernels.ballots``) and of signSGD."""

    on_device: ClassVar[bool] = True

    name: Literal["sign_bits"] = "sign_bits"

    @property
    def in_parts(self) -> bool:
        return True

    def max_bytes(self, n: int) -> int:
        """Exact."""
        return 8 * -(-n // 64)

    def _encode(self, x: Floats, seed: int, first: int, payload: Bytes) -> int:
        require_finite(kernels.bits.pack(x, payload.view(np.uint64)), self)
        return payload.size

    def _decode(self, payload: Bytes, out: Floats, weight: float, add: bool) -> None:
        size = self.max_bytes(out.size)
        require_bytes(payload, size, self)
        kernels.bits.unpack(payload[:size].view(np.uint64), np.float32(weight), add, out)

    def _encode_parts(self, x: Tensor, cut: Cut, slots: Tensor, seed: int, first: int, worst: Tensor) -> None:
        cuda.bits.pack(x, cut, slots, worst)

    def _decode_parts(self, slots: Tensor, cut: Cut, out: Tensor, weight: float, add: bool) -> None:
        cuda.bits.unpack(slots, cut, weight, add, out)


class Sign(Codec):
    """Signs times the mean magnitude of their bucket; meant for error feedback, which it does in one sweep of
    memory.
    """

    on_device: ClassVar[bool] = True

    name: Literal["sign"] = "sign"
    bucket: int = Field(512, gt=0, multiple_of=512, description="values that share a scale")

    @property
    def in_parts(self) -> bool:
        return True

    def contraction(self, n: int) -> float:
        """One in the bucket's size; typical tensors do far better (2 / pi for Gaussian values)."""
        return 1 / max(1, min(n, self.bucket))

    def max_bytes(self, n: int) -> int:
        """Exact."""
        return self._scale_bytes(n) + 8 * -(-n // 64)

    def _encode(self, x: Floats, seed: int, first: int, payload: Bytes) -> int:
        scales, words = self._blank(payload, x.size)
        require_finite(kernels.bits.encode(x, self.bucket, scales, words), self)
        return payload.size

    def _decode(self, payload: Bytes, out: Floats, weight: float, add: bool) -> None:
        require_bytes(payload, self.max_bytes(out.size), self)
        scales, words = self._parts(payload, out.size)
        kernels.bits.decode(scales, words, self.bucket, weight, add, out)

    def _encode_feedback(self, x: Floats, residual: Floats, seed: int, first: int, payload: Bytes) -> int:
        scales, words = self._blank(payload, x.size)
        require_finite(kernels.bits.encode_feedback(x, residual, self.bucket, scales, words), self)
        return payload.size

    def _encode_parts(self, x: Tensor, cut: Cut, slots: Tensor, seed: int, first: int, worst: Tensor) -> None:
        cuda.bits.encode(x, cut, slots, self.bucket, worst)

    def _decode_parts(self, slots: Tensor, cut: Cut, out: Tensor, weight: float, add: bool) -> None:
        cuda.bits.decode(slots, cut, self.bucket, weight, add, out)

    def _scale_bytes(self, n: int) -> int:
        return 8 * -(-4 * -(-n // self.bucket) // 8)

    def _blank(self, payload: Bytes, n: int) -> tuple[Floats, NDArray[np.uint64]]:
        payload[self._scale_bytes(n) - 4 : self._scale_bytes(n)] = 0  # the padding after an odd number of scales
        return self._parts(payload, n)

    def _parts(self, payload: Bytes, n: int) -> tuple[Floats, NDArray[np.uint64]]:
        split, scales = self._scale_bytes(n), -(-n // self.bucket)
        return payload[: 4 * scales].view(np.float32), payload[split : self.max_bytes(n)].view(np.uint64)
