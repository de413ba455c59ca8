"""The identity: float32 as it is. For small tensors, and as the base line of every comparison.

Payload, version 1: n float32. Carries Inf and NaN.
"""

from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from hpcopt.compress.codec import Bytes, Codec, Floats, require_bytes
from hpcopt.kernels.cut import Cut


class Dense(Codec):
    """No compression."""

    on_device: ClassVar[bool] = True

    name: Literal["dense"] = "dense"

    linear: ClassVar[bool] = True
    carries_not_finite: ClassVar[bool] = True

    @property
    def in_parts(self) -> bool:
        return True

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

    def _encode_parts(self, x: Tensor, cut: Cut, slots: Tensor, seed: int, first: int, worst: Tensor) -> None:
        for parts, where, length in cut.groups():
            slots[parts, : 4 * length].view(torch.float32).copy_(x[where].view(-1, length))

    def _decode_parts(self, slots: Tensor, cut: Cut, out: Tensor, weight: float, add: bool) -> None:
        for parts, where, length in cut.groups():
            values, target = slots[parts, : 4 * length].view(torch.float32) * weight, out[where].view(-1, length)
            target.copy_(target + values if add else values)
