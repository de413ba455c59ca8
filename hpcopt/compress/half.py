"""Half precision: each value rounded to the nearest bfloat16 or float16, ties to even.

Payload, version 1: n values of two bytes. Inf and NaN are carried on. bfloat16 has the range of float32 and a
relative error of at most 2^-8; float16 has 2^-11 between 6.1e-5 and 65504, and loses what is below 3e-8. What is finite
stays so: values beyond the format's largest become the largest, and error feedback keeps the rest.

Linear in that payloads may be summed on a ring; each hop rounds its partial sum again. There a sum beyond the format's
largest is Inf, on all ranks.
"""

from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from hpcopt import kernels
from hpcopt.compress.codec import Bytes, Codec, Floats, require_bytes
from hpcopt.kernels.cut import Cut


class Half(Codec):
    """Two bytes a value."""

    on_device: ClassVar[bool] = True

    name: Literal["half"] = "half"
    format: Literal["bf16", "fp16"] = Field("bf16", description="bf16 keeps the range of float32, fp16 three more bits")

    linear: ClassVar[bool] = True
    carries_not_finite: ClassVar[bool] = True

    @property
    def in_parts(self) -> bool:
        return True

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the payload's values."""
        return torch.bfloat16 if self.format == "bf16" else torch.float16

    def contraction(self, n: int) -> float | None:
        """1 - 2^-16 for bf16; none for fp16, which loses small values and cannot hold large ones."""
        return 1 - 2.0**-16 if self.format == "bf16" else None

    def gain(self, n: int) -> float:
        """Rounding up."""
        return 1 + torch.finfo(self.dtype).eps

    def max_bytes(self, n: int) -> int:
        """Exact."""
        return 2 * n

    def summable(self, payload: Tensor) -> Tensor:
        """All of it, in the payload's own format."""
        return payload.view(self.dtype)

    def _encode(self, x: Floats, seed: int, first: int, payload: Bytes) -> int:
        if self.format == "bf16":
            kernels.bfloat16.bfloat16(x.view(np.uint32), payload.view(np.uint16))
            return payload.size
        values = torch.from_numpy(payload).view(self.dtype)
        values.copy_(torch.from_numpy(x))
        if kernels.levels.worst(x) > np.float32(torch.finfo(self.dtype).max).view(np.int32):
            self._saturate(torch.from_numpy(x), values)
        return payload.size

    def _decode(self, payload: Bytes, out: Floats, weight: float, add: bool) -> None:
        require_bytes(payload, 2 * out.size, self)
        self._read(torch.from_numpy(payload[: 2 * out.size]).view(self.dtype), torch.from_numpy(out), weight, add)

    def _encode_parts(self, x: Tensor, cut: Cut, slots: Tensor, seed: int, first: int, worst: Tensor) -> None:
        for parts, where, length in cut.groups():
            values = slots[parts, : 2 * length].view(self.dtype)
            values.copy_(x[where].view(-1, length))
            self._saturate(x[where].view(-1, length), values)

    def _decode_parts(self, slots: Tensor, cut: Cut, out: Tensor, weight: float, add: bool) -> None:
        for parts, where, length in cut.groups():
            self._read(slots[parts, : 2 * length].view(self.dtype), out[where].view(-1, length), weight, add)

    def _saturate(self, x: Tensor, values: Tensor) -> None:
        """Put the largest of the format where rounding a finite x has made Inf."""
        top = torch.finfo(self.dtype).max
        values.copy_(torch.where(x.isfinite(), values.clamp(-top, top), values))

    def _read(self, values: Tensor, out: Tensor, weight: float, add: bool) -> None:
        if add:
            out.add_(values, alpha=weight)
        else:
            out.copy_(values)
            if weight != 1:
                out.mul_(weight)
