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

import torch
from pydantic import Field
from torch import Tensor

from hpcopt import kernels
from hpcopt.compress.codec import Bytes, Floats, float_array
from hpcopt.compress.residuals import Layout, views
from hpcopt.compress.rounds import Reduction, RoundsConfig, agree
from hpcopt.compress.scaled_codes import BLOCK, ScaledCodes, small_value_variance
from hpcopt.kernels import cuda
from hpcopt.kernels.cut import Cut

BITS = 2


class TernGrad(ScaledCodes):
    """Two bits a value."""

    name: Literal["terngrad"] = "terngrad"
    bucket: int = Field(512, gt=0, multiple_of=BLOCK, description="values that share a scale")
    clip: float | None = Field(None, gt=0, description="in root mean squares of the bucket; 2.5 in the paper")

    def variance(self, n: int) -> float | None:
        """The exact supremum, about sqrt(bucket) / 2; None with clipping, which is biased."""
        return None if self.clip else small_value_variance(1, min(n, self.bucket) - 1)

    def _layout(self) -> tuple[int, int]:
        return self.bucket, BITS

    def _fill(self, x: Floats, seed: int, first: int, scales: Floats, codes: Bytes) -> int:
        worst: int = kernels.levels.encode(x, *self._layout(), False, self.clip or 0.0, seed, first, scales, codes)
        return worst

    def _read(self, scales: Floats, codes: Bytes, weight: float, add: bool, out: Floats) -> None:
        kernels.levels.decode(scales, codes, *self._layout(), weight, add, out)

    def _encode_parts(self, x: Tensor, cut: Cut, slots: Tensor, seed: int, first: int, worst: Tensor) -> None:
        cuda.levels.encode(x, cut, slots, *self._layout(), False, self.clip or 0.0, seed, first, worst)

    def _decode_parts(self, slots: Tensor, cut: Cut, out: Tensor, weight: float, add: bool) -> None:
        cuda.levels.decode(slots, cut, *self._layout(), weight, add, out)


class SharedTernGrad(RoundsConfig):
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
        if not (yield from agree(self, 1.0, bucket)):
            return
        parts = [part.view(-1) for part in views(bucket, layout).values()]
        scales = torch.stack([self._scale(part) for part in parts]) if parts else torch.empty(0)
        yield Reduction("max", scales)
        signs = torch.empty(bucket.numel(), dtype=torch.int8)
        first = 0
        for scale, part in zip(scales.tolist(), parts, strict=True):
            kernels.levels.ternary(float_array(part), scale, seed, first, signs.numpy()[first : first + part.numel()])
            first += part.numel()
        sums = signs.to(getattr(torch, self.sums))
        yield Reduction("sum", sums)
        bucket.copy_(sums)
        for scale, part in zip(scales, parts, strict=True):
            part.mul_(scale)

    def settle(self, bucket: Tensor, layout: Layout) -> None:
        """Nothing is owed."""

    def state_dict(self) -> dict[str, Tensor]:
        """Empty."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to take over."""

    def _scale(self, part: Tensor) -> Tensor:
        top, square = kernels.levels.magnitudes(float_array(part))
        return torch.tensor(min(top, self.clip * (square / part.numel()) ** 0.5) if self.clip and part.numel() else top)
