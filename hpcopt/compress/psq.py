"""PSQ: stochastic quantisation with a step for each row of a matrix, unbiased, 2 to 8 bits a value.

Chen et al. 2020, arXiv:2010.14298, the per-sample quantizer. With B = 2^bits - 1 and a row's range R, a value lies
between two of B + 1 levels, R / B apart, and becomes one of them, so that the mean is kept. ``E |Q - x|^2`` is the sum
over rows of ``(R / B)^2 sum f (1 - f)``, f being the fractional parts.

QSGD has a scale for so many values, whatever they are, and levels about 0; here rows are those of the tensor, and
levels lie between a row's smallest and largest value, which is finer where these are not opposite.

Payload, version 1: R float32 centres; R float32 steps; then the codes, of ``bits`` bits, packed as ``kernels.packing``
describes. A code stands for ``centre + step (code - B / 2)``.
"""

from typing import Literal

import numpy as np

from hpcopt import kernels
from hpcopt.compress.codec import Bytes, Floats, require_bytes, require_finite
from hpcopt.compress.row_codes import RowCodes


class PSQ(RowCodes):
    """Levels between a row's smallest and largest value.

    >>> import torch
    >>> codec = PSQ(bits=8).for_tensor("weight", (2, 3))
    >>> x = torch.tensor([0.0, 51.0, 255.0, 1.0, 1.0, 1.0])
    >>> payload = codec.encode(x, seed=0)
    >>> payload.numel(), codec.decode(payload, 6).tolist()
    (22, [0.0, 51.0, 255.0, 1.0, 1.0, 1.0])
    """

    name: Literal["psq"] = "psq"

    def variance(self, n: int) -> float:
        """The exact supremum: two values opposite, and all others between them, amid two levels."""
        return max(0, min(n, self.bucket) - 2) / (2 * self.top**2)

    def max_bytes(self, n: int) -> int:
        """Exact."""
        return 8 * self.rows(n) + self._code_bytes(n)

    def _encode(self, x: Floats, seed: int, first: int, payload: Bytes) -> int:
        worst = kernels.rows.encode(x, self.bucket, self.bits, seed, first, *self._parts(payload, x.size))
        require_finite(worst, self)
        return payload.size

    def _decode(self, payload: Bytes, out: Floats, weight: float, add: bool) -> None:
        require_bytes(payload, self.max_bytes(out.size), self)
        kernels.rows.decode(*self._parts(payload, out.size), self.bucket, self.bits, weight, add, out)

    def _parts(self, payload: Bytes, n: int) -> tuple[Floats, Floats, Bytes]:
        steps, codes = 4 * self.rows(n), 8 * self.rows(n)
        return (
            payload[:steps].view(np.float32),
            payload[steps:codes].view(np.float32),
            payload[codes : self.max_bytes(n)],
        )
