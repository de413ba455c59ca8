"""The identity: float32 as it is. For small tensors, and as the base line of every comparison.

Payload, version 1: n float32. Carries Inf and NaN.
"""

from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from hpcopt.compress.codec import Bytes, Codec, Floats, require_bytes


class Dense(Codec):
    """No compression."""

    on_device: ClassVar[bool] = True

    name: Literal["dense"] = "dense"

    linear: ClassVar[bool] = True
    carries_not_finite: ClassVar[bool] = True

    def variance(self, n: int) -> float:
        """None at all."""
        return 0.0

    def max_bytes(self, n: int) -> int:
        """Exact."""
        return 4 * n

    def summable(self, payload: Tensor) -> Tensor:
        """All of it, float32."""
        return payload.view(torch.float32)

    def _encode(self, x: Floats, seed: int, first: int, payload: Bytes) -> int:
        payload.view(np.float32)[:] = x
        return payload.size

    def _decode(self, payload: Bytes, out: Floats, weight: float, add: bool) -> None:
        require_bytes(payload, 4 * out.size, self)
        values = payload[: 4 * out.size].view(np.float32)
        if add:
            out += np.float32(weight) * values
        elif weight == 1:
            np.copyto(out, values)
        else:
            np.multiply(values, np.float32(weight), out=out)

    def _encode_on_device(self, x: Tensor, seed: int, first: int, payload: Tensor) -> int:
        payload.view(torch.float32).copy_(x)
        return payload.numel()

    def _decode_on_device(self, payload: Tensor, out: Tensor, weight: float, add: bool) -> None:
        require_bytes(payload, 4 * out.numel(), self)
        values = payload[: 4 * out.numel()].view(torch.float32) * weight
        out.copy_(out + values if add else values)
