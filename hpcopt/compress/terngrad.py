"""TernGrad: each value becomes -1, 0 or +1 times the largest magnitude of its bucket.

Wen et al. 2017, arXiv:1705.07878, eq. 3: ``b_i ~ Bernoulli(|x_i| / N)``, ``Q(x)_i = N sign(x_i) b_i`` with
``N = max |x_i|``. The mean over draws is x, and ``E |Q(x) - x|^2 = N |x|_1 - |x|_2^2`` exactly. It is QSGD with one
level. ``clip = 2.5`` is the paper's gradient clipping: magnitudes above clip times the root mean square of the bucket
are cut first; then the mean over draws is the clipped x.

``TernGrad`` scales each bucket by itself; ``SharedTernGrad`` is the paper's scaler sharing: all ranks use the largest
of their scales, so that payloads are integers which may be summed.

Payload, version 1: TernGrad as QSGD with 2 bits. SharedTernGrad: one float32 scale a tensor (to be maximised), then n
int8 or int16 (to be summed).
"""

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from hpcopt import kernels
from hpcopt.compress.codec import Bytes, Codec, Floats, float_array, require_bytes, require_finite
from hpcopt.compress.qsgd import BLOCK, packed_bytes, small_value_variance
from hpcopt.compress.residuals import Layout, views
from hpcopt.compress.rounds import Reduction
from hpcopt.config import Config
from hpcopt.errors import NonFiniteError
from hpcopt.kernels import cuda

BITS = 2


class TernGrad(Codec):
    """Two bits a value."""

    name: Literal["terngrad"] = "terngrad"
    bucket: int = Field(512, gt=0, multiple_of=BLOCK, description="values that share a scale")
    clip: float | None = Field(None, gt=0, description="in root mean squares of the bucket; 2.5 in the paper")

    def variance(self, n: int) -> float | None:
        """The exact supremum, about sqrt(bucket) / 2; None with clipping, which is biased."""
        return None if self.clip else small_value_variance(1, min(n, self.bucket) - 1)

    def max_bytes(self, n: int) -> int:
        """Exact."""
        return 4 * self._buckets(n) + packed_bytes(n, BITS)

    def _encode(self, x: Floats, seed: int, first: int, payload: Bytes) -> int:
        scales, codes = self._parts(payload, x.size)
        require_finite(
            kernels.qsgd.encode(x, self.bucket, BITS, False, self.clip or 0.0, seed, first, scales, codes), self
        )
        return payload.size

    def _decode(self, payload: Bytes, out: Floats, weight: float, add: bool) -> None:
        require_bytes(payload, self.max_bytes(out.size), self)
        scales, codes = self._parts(payload, out.size)
        kernels.qsgd.decode(scales, codes, self.bucket, BITS, weight, add, out)

    def _encode_on_device(self, x: Tensor, seed: int, first: int, payload: Tensor) -> int:
        scales, codes = self._parts_on_device(payload, x.numel())
        worst = cuda.qsgd.encode(x, self.bucket, BITS, False, self.clip or 0.0, seed, first, scales, codes)
        require_finite(worst, self)
        return payload.numel()

    def _decode_on_device(self, payload: Tensor, out: Tensor, weight: float, add: bool) -> None:
        require_bytes(payload, self.max_bytes(out.numel()), self)
        scales, codes = self._parts_on_device(payload, out.numel())
        cuda.qsgd.decode(scales, codes, self.bucket, BITS, weight, add, out)

    def _buckets(self, n: int) -> int:
        return -(-n // self.bucket)

    def _parts(self, payload: Bytes, n: int) -> tuple[Floats, Bytes]:
        split = 4 * self._buckets(n)
        return payload[:split].view(np.float32), payload[split : self.max_bytes(n)]

    def _parts_on_device(self, payload: Tensor, n: int) -> tuple[Tensor, Tensor]:
        split = 4 * self._buckets(n)
        return payload[:split].view(torch.float32), payload[split : self.max_bytes(n)]


class SharedTernGrad(Config):
    """Ternary with one scale a tensor, the largest over the ranks: two rounds, and sums that are exact."""

    name: Literal["shared_terngrad"] = "shared_terngrad"
    sums: Literal["int8", "int16"] = Field("int8", description="the integers on the wire")
    clip: float | None = Field(None, gt=0, description="in root mean squares of the tensor; 2.5 in the paper")

    shared_seed: ClassVar[bool] = False  # each rank errs by itself, so that errors average out

    @property
    def max_ranks(self) -> int:
        """As many ranks as the sums can hold; the collective must refuse more."""
        return 127 if self.sums == "int8" else 32767

    def build(self) -> "SharedTernGrad":
        """Itself: there is no state."""
        return self

    def rounds(self, bucket: Tensor, layout: Layout, *, seed: int) -> Iterator[Reduction]:
        """The maximum of the scales, then the sum of the signs."""
        parts = [part.view(-1) for part in views(bucket, layout).values()]
        scales = torch.stack([self._scale(part) for part in parts]) if parts else torch.empty(0)
        yield Reduction("max", scales)
        signs = torch.empty(bucket.numel(), dtype=torch.int8)
        first = 0
        for scale, part in zip(scales.tolist(), parts, strict=True):
            kernels.qsgd.ternary(float_array(part), scale, seed, first, signs.numpy()[first : first + part.numel()])
            first += part.numel()
        sums = signs.to(getattr(torch, self.sums))
        yield Reduction("sum", sums)
        bucket.copy_(sums)
        for scale, part in zip(scales, parts, strict=True):
            part.mul_(scale)

    def state_dict(self) -> dict[str, Tensor]:
        """Empty."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to take over."""

    def _scale(self, part: Tensor) -> Tensor:
        top, square = kernels.qsgd.magnitudes(float_array(part))
        if not np.isfinite(top):
            raise NonFiniteError("shared_terngrad was given Inf or NaN: lower the learning rate or clip the gradient")
        return torch.tensor(min(top, self.clip * (square / part.numel()) ** 0.5) if self.clip and part.numel() else top)
