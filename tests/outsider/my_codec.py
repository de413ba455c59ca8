"""Somebody's own codec: eight bits a value, round(127 x / max |x|)."""

import numpy as np

from hpcopt.compress import Codec
from hpcopt.errors import NonFiniteError, PayloadError


class EightBits(Codec):
    """One float32 scale, then a signed byte a value."""

    def max_bytes(self, n: int) -> int:
        return 4 + n

    def contraction(self, n: int) -> float:
        """No value becomes more wrong than it is large, and the largest is carried whole."""
        return 1 / n

    def _encode(self, x, seed, first, payload) -> int:
        scale = float(np.abs(x).max())
        if not np.isfinite(scale):
            raise NonFiniteError(f"codec {self.name!r} carries neither Inf nor NaN")
        payload[:4].view(np.float32)[0] = scale
        payload[4 : 4 + x.size].view(np.int8)[:] = np.rint(x.astype(np.float64) / scale * 127) if scale else 0
        return 4 + x.size

    def _decode(self, payload, out, weight, add) -> None:
        if payload.size < 4 + out.size:
            raise PayloadError(f"{payload.size} bytes are no {out.size} values")
        scale = float(payload[:4].view(np.float32)[0])
        values = (payload[4 : 4 + out.size].view(np.int8) * (scale / 127)).astype(np.float32)
        out[:] = (out if add else 0) + np.float32(weight) * values
