"""Chunked top-k with values of two bits: of every 4,096 values the 64 largest, each a sign and one of two magnitudes.

What SparseLoCo sends of a parameter delta (Sarfi et al. 2025, arXiv:2508.15706): the choice is made within chunks, so
that a place takes few bits and no part of a tensor goes hungry. The two magnitudes of a chunk are here the means of the
two groups into which the selected ones fall with the least squared error, so what is selected needs no scale of its
own. Biased; meant for error feedback.

With c values in a chunk and k sent, ``|C(x)|^2 >= max(M^2, S^2 / k)``, M being the largest and S the sum of the
selected magnitudes; and ``|x|^2 <= M S + (c - k) (S / k)^2``. C(x) is a projection, ``|C(x) - x|^2 = |x|^2 -
|C(x)|^2``. So ``delta = 1 / (sqrt(k) + c / k - 1)``.

Payload, version 1: two float32 magnitudes a chunk, the smaller first, then chunk by chunk the codes and places as
``kernels.chunks`` describes, each chunk in whole bytes.
"""

import math
from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from hpcopt import kernels
from hpcopt.compress.codec import Bytes, Codec, Floats, require_bytes, require_finite
from hpcopt.errors import PayloadError


class ChunkedTopK(Codec):
    """The largest values of every chunk, in two bits and a place each."""

    name: Literal["chunked_topk"] = "chunked_topk"
    bucket: int = Field(4096, ge=64, multiple_of=64, description="values in a chunk")
    k: int = Field(64, ge=1, description="values sent of a whole chunk")

    @model_validator(mode="after")
    def _k_fits(self) -> Self:
        if self.k > self.bucket:
            raise ValueError(f"k = {self.k} is more than the {self.bucket} values of a chunk")
        return self

    def contraction(self, n: int) -> float:
        """As above, of the chunk that is worst off.

        >>> import torch
        >>> codec, x = ChunkedTopK(), torch.randn(40960, generator=torch.Generator().manual_seed(0))
        >>> codec.max_bytes(40960), codec.encode(x, seed=0).numel()  # 7 bytes in 1,000 of a bfloat16's
        (880, 880)
        >>> error = (codec.decode(codec.encode(x, seed=0), 40960) - x).square().sum() / x.square().sum()
        >>> bool(error < 1 - codec.contraction(40960))
        True
        """
        deltas = [1.0]
        for count in {min(n, self.bucket), n % self.bucket} - {0}:
            sent = -(-count * self.k // self.bucket)
            deltas.append(1 / (math.sqrt(sent) + count / sent - 1))
        return min(deltas)

    def max_bytes(self, n: int) -> int:
        """Exact."""
        whole, rest = divmod(n, self.bucket)
        return 8 * -(-n // self.bucket) + whole * self._stretch_bytes(self.bucket) + self._stretch_bytes(rest)

    def _stretch_bytes(self, count: int) -> int:
        """As in the kernels, which a plan need not load."""
        if not count:
            return 0
        sent = -(-count * self.k // self.bucket)
        low = (count // sent).bit_length() - 1
        return -(-((3 + low) * sent + (count - 1 >> low)) // 8)

    def _encode(self, x: Floats, seed: int, first: int, payload: Bytes) -> int:
        levels, packed = self._parts(payload, x.size)
        require_finite(kernels.chunks.encode(x, self.bucket, self.k, levels, packed), self)
        return payload.size

    def _decode(self, payload: Bytes, out: Floats, weight: float, add: bool) -> None:
        require_bytes(payload, self.max_bytes(out.size), self)
        if not add:
            out[:] = 0
        if not kernels.chunks.decode(*self._parts(payload, out.size), self.bucket, self.k, weight, out):
            raise PayloadError(f"codec {self.name!r}: the payload's places are not those of {out.size} values")

    def _parts(self, payload: Bytes, n: int) -> tuple[Floats, Bytes]:
        split = 8 * -(-n // self.bucket)
        return payload[:split].view(np.float32), payload[split : self.max_bytes(n)]
