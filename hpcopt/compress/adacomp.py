"""AdaComp: in each bin, the values that one more gradient would bring up to the bin's largest.

Chen et al. 2018, arXiv:1712.02679, alg. 2, with residue r and gradient dW: ``G = r + dW``, ``H = G + (c - 1) dW`` (c,
the soft threshold's scale, is 2); value j of a bin is sent if ``|H_j| >= max |G|`` over the bin, as sign(G_j) times
S, the mean of the bins' maxima; ``r = G - sent``. The number sent adapts to each bin by itself.

It is meant for error feedback, which holds the residue; without, r = 0. It neither is unbiased nor contracts (S may
overshoot a small G_j): what it guarantees is that nothing is lost, sent + residue = G to rounding, and that each
bin's largest goes out whenever gradient and residue agree in sign.

Payload, version 1: float32 S, uint32 number of entries, the number of entries in each bin (padded with zeros to a
multiple of 4 bytes), then the entries in order: offset in the bin, the top bit set for minus. Both are uint8 for bins
of up to 128 values and uint16 above.
"""

from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hpcopt import kernels
from hpcopt.compress.codec import Bytes, Codec, Floats, require_bytes, require_finite
from hpcopt.errors import PayloadError

CONVOLUTION, OTHER = 50, 500  # bin sizes of the paper
SMALL = 128  # bins up to here have offsets of 7 bits

Codes = NDArray[np.uint8] | NDArray[np.uint16]


class AdaComp(Codec):
    """Self-adjusting sparse signs."""

    name: Literal["adacomp"] = "adacomp"
    bin: int | None = Field(
        None, ge=1, le=32768, description="values that share a maximum; by default 50 for convolutions, 500 for others"
    )
    scale: float = Field(2.0, ge=1, description="the soft threshold's; 1.5 to 3 work")

    def for_tensor(self, name: str, shape: tuple[int, ...]) -> Self:
        """With the paper's bin for this kind of parameter."""
        return self if self.bin else self.model_copy(update={"bin": CONVOLUTION if len(shape) >= 3 else OTHER})

    def max_bytes(self, n: int) -> int:
        """If every value is sent."""
        return self._counts_end(n) + self._code.itemsize * n

    def _encode(self, x: Floats, seed: int, first: int, payload: Bytes) -> int:
        return self._encode_feedback(x, np.zeros_like(x), seed, first, payload)

    def _encode_feedback(self, x: Floats, residual: Floats, seed: int, first: int, payload: Bytes) -> int:
        counts, entries = self._parts(payload, x.size)
        end = self._counts_end(x.size)
        payload[end - 4 : end] = 0  # the padding after the counts
        sent = np.zeros(x.size // 64 + 2, np.uint64)
        number, scale, worst = kernels.bins.encode(
            x, residual, self._bin, np.float32(self.scale - 1), counts, entries, sent
        )
        require_finite(worst, self)
        payload[:4].view(np.float32)[0] = scale
        payload[4:8].view(np.uint32)[0] = number
        kernels.bins.settle(sent, scale, residual)
        return end + self._code.itemsize * int(number)

    def _decode(self, payload: Bytes, out: Floats, weight: float, add: bool) -> None:
        require_bytes(payload, self._counts_end(out.size), self)
        scale = np.float32(payload[:4].view(np.float32)[0] * weight)
        number = int(payload[4:8].view(np.uint32)[0])
        end = self._counts_end(out.size)
        require_bytes(payload, end + self._code.itemsize * number, self)
        counts, entries = self._parts(payload[: end + self._code.itemsize * number], out.size)
        if not add:
            out[:] = 0
        if not kernels.bins.add(counts, entries, scale, self._bin, self._minus, out):
            raise PayloadError(f"codec {self.name!r}: the payload's entries do not fit {out.size} values")

    @property
    def _bin(self) -> int:
        return self.bin or OTHER

    @property
    def _code(self) -> np.dtype[np.uint8] | np.dtype[np.uint16]:
        return np.dtype(np.uint8) if self._bin <= SMALL else np.dtype(np.uint16)

    @property
    def _minus(self) -> int:
        return 1 << (8 * self._code.itemsize - 1)

    def _counts_end(self, n: int) -> int:
        return 8 + 4 * -(-self._code.itemsize * -(-n // self._bin) // 4)

    def _parts(self, payload: Bytes, n: int) -> tuple[Codes, Codes]:
        bins, end = -(-n // self._bin), self._counts_end(n)
        counts = payload[8 : 8 + self._code.itemsize * bins].view(self._code)
        return counts, payload[end : end + (payload.size - end) // self._code.itemsize * self._code.itemsize].view(
            self._code
        )
