"""Random choices of values: random-k and adaptive random sparsification.

- ``random_k``: k of n values, each with probability k / n, drawn from the seed, so that no places are sent; with the
  same seed on all ranks it is linear. ``scaled`` multiplies by n / k: unbiased, ``E |C(x) - x|^2 = (n / k - 1)
  |x|^2`` exactly. Unscaled it contracts with delta = k / n (arXiv:2002.12410, sec. 2).
- ``adaptive_random`` (ibid.): in each bucket one value, drawn with probability ``|x_i| / |x|_1`` and sent as it is:
  ``E |C(x) - x|^2 <= (1 - 1/bucket) |x|^2``.

Payload: random_k (version 2: places on a turned ring) writes the seed and ``first`` (int64 each), then k float32;
only the latter are summed. adaptive_random (version 1) writes, over all buckets, uint32 offsets in the bucket, then
float32 values.
"""

from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from hpcopt import kernels
from hpcopt.compress.codec import Bytes, Codec, Floats, require_bytes, require_finite
from hpcopt.errors import PayloadError
from hpcopt.kernels import cuda
from hpcopt.kernels.cut import Cut


class RandomK(Codec):
    """A share of the values, drawn at random."""

    on_device: ClassVar[bool] = True

    name: Literal["random_k"] = "random_k"
    fraction: float = Field(0.01, gt=0, le=1, description="of the values that is sent")
    scaled: bool = Field(True, description="unbiased, rather than contracting")

    wire_version: ClassVar[int] = 2
    linear: ClassVar[bool] = True
    shared_seed: ClassVar[bool] = True

    @property
    def in_parts(self) -> bool:
        return True

    def k(self, n: int) -> int:
        """Values sent of n."""
        return min(n, max(1, round(self.fraction * n)))

    def variance(self, n: int) -> float | None:
        """``n / k - 1``, or None if not scaled."""
        return self._stretch(n) - 1 if self.scaled else None

    def contraction(self, n: int) -> float | None:
        """``k / n`` if not scaled."""
        return super().contraction(n) if self.scaled else 1 / self._stretch(n)

    def gain(self, n: int) -> float:
        """``n / k`` if scaled."""
        return self._stretch(n) if self.scaled else 1.0

    def max_bytes(self, n: int) -> int:
        """Exact."""
        return 16 + 4 * self.k(n)

    def summable(self, payload: Tensor) -> Tensor:
        """The values, without the seed."""
        return payload[16:].view(torch.float32)

    def _encode(self, x: Floats, seed: int, first: int, payload: Bytes) -> int:
        require_finite(kernels.levels.worst(x), self)
        payload[:16].view(np.int64)[:] = seed, first
        places = self._places(x.size, seed, first)
        values = payload[16:].view(np.float32)
        values[:] = x[places]
        if self.scaled:
            with np.errstate(over="ignore"):
                values *= np.float32(self._stretch(x.size))
            require_finite(kernels.levels.worst(values), self)
        return payload.size

    def _decode(self, payload: Bytes, out: Floats, weight: float, add: bool) -> None:
        require_bytes(payload, self.max_bytes(out.size), self)
        seed, first = payload[:16].view(np.int64).tolist()
        places = self._places(out.size, seed, first)
        if not add:
            out[:] = 0
        values = payload[16 : self.max_bytes(out.size)].view(np.float32)
        kernels.sparse.scatter(values, places, np.float32(weight), out)

    def _encode_parts(self, x: Tensor, cut: Cut, slots: Tensor, seed: int, first: int, worst: Tensor) -> None:
        for parts, where, length in cut.groups():
            rows, slot = x[where].view(-1, length), slots[parts, : self.max_bytes(length)]
            head = slot[:, :16].view(torch.int64)
            head[:, 0] = seed
            torch.arange(first + where.start, first + where.stop, length, out=head[:, 1])
            places = cuda.sampling.one_in_each(length, self.k(length), seed, head[:, 1:])
            values = rows.gather(1, places) * (self._stretch(length) if self.scaled else 1.0)
            slot[:, 16:].view(torch.float32).copy_(values)
            for tensor in (rows, values):
                torch.maximum(worst, cuda.select.not_finite(tensor), out=worst)

    def _decode_parts(self, slots: Tensor, cut: Cut, out: Tensor, weight: float, add: bool) -> None:
        for parts, where, length in cut.groups():
            rows, slot = out[where].view(-1, length), slots[parts, : self.max_bytes(length)]
            head = slot[:, :16].view(torch.int64)
            if not add:
                rows.zero_()
            places = cuda.sampling.one_in_each(length, self.k(length), head[:, :1], head[:, 1:])
            rows.scatter_add_(1, places, slot[:, 16:].view(torch.float32) * weight)

    def _places(self, n: int, seed: int, first: int) -> NDArray[np.int64]:
        """The places drawn, all different."""
        places = np.empty(self.k(n), np.int64)
        kernels.sampling.one_in_each(n, places.size, seed, first, places)
        return places

    def _stretch(self, n: int) -> float:
        """How many values one stands for."""
        return n / self.k(n) if n else 1.0


class AdaptiveRandom(Codec):
    """One value in each bucket, the large ones more often."""

    name: Literal["adaptive_random"] = "adaptive_random"
    bucket: int = Field(100, gt=0, description="values of which one is sent")

    def contraction(self, n: int) -> float:
        """One in the bucket's size."""
        return 1 / max(1, min(n, self.bucket))

    def max_bytes(self, n: int) -> int:
        """Exact."""
        return 8 * -(-n // self.bucket)

    def _encode(self, x: Floats, seed: int, first: int, payload: Bytes) -> int:
        require_finite(kernels.levels.worst(x), self)
        offsets, values = self._parts(payload, x.size)
        kernels.sampling.by_magnitude(x, self.bucket, seed, first, offsets, values)
        return payload.size

    def _decode(self, payload: Bytes, out: Floats, weight: float, add: bool) -> None:
        require_bytes(payload, self.max_bytes(out.size), self)
        offsets, values = self._parts(payload, out.size)
        places = offsets.astype(np.int64) + self.bucket * np.arange(offsets.size)
        if not add:
            out[:] = 0
        if not kernels.sparse.scatter(values, places, np.float32(weight), out):
            raise PayloadError(
                f"codec {self.name!r}: an offset in the payload is beyond the {out.size} values of the tensor"
            )

    def _parts(self, payload: Bytes, n: int) -> tuple[NDArray[np.uint32], Floats]:
        split = 4 * -(-n // self.bucket)
        return payload[:split].view(np.uint32), payload[split : 2 * split].view(np.float32)
