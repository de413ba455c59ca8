"""BHQ: PSQ of a matrix whose large rows were dealt to small ones, unbiased, 2 to 8 bits a value.

Chen et al. 2020, arXiv:2010.14298, the block Householder quantizer: ``S^-1 PSQ(S x)``. S mixes each row with a large
range with rows that have small ones, by a Householder reflection of its group, so that rows have ranges alike; see
``hpcopt.lowbit.reflection``. Groups are formed within every so many rows.

Payload, version 1: R float32 centres and R float32 steps of the mixed rows; R float32 scales, the diagonal of S before
the reflection; R uint16, the number of each row's leader within its ``height`` rows; then the codes, as PSQ has them.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hpcopt import kernels
from hpcopt.compress.codec import Bytes, Floats, require_bytes, require_finite
from hpcopt.compress.finite import MOST
from hpcopt.compress.row_codes import RowCodes
from hpcopt.errors import PayloadError

HEAD_BYTES = 14  # of a row
# Over all groups that can be, of n rows with ranges l1 >= l2: the largest sum over mixed rows of the squared bound on
# the row's range times the squared norm of the column of S^-1, and the largest error of a step each, both at l1 = 1.
WORST_SQUARES = 26.0
WORST_ERROR = 7.0


class BHQ(RowCodes):
    """Levels between the ends of mixed rows.

    >>> import torch
    >>> codec = BHQ(bits=8).for_tensor("weight", (2, 3))
    >>> payload = codec.encode(torch.tensor([0.0, 51.0, 255.0, 1.0, 1.0, 1.0]), seed=0)
    >>> payload.numel(), codec.decode(payload, 6).round().int().tolist()
    (34, [0, 51, 255, 1, 1, 1])
    """

    name: Literal["bhq"] = "bhq"
    height: int = Field(128, ge=1, le=65536, description="rows that may be mixed; few enough stay in the cache")

    def variance(self, n: int) -> float:
        """A bound, some 26 times that of PSQ: it holds for the worst ranges of rows that can be."""
        return WORST_SQUARES * min(n, self.bucket) / (2 * self.top**2)

    def gain(self, n: int) -> float:
        """A value may be off by steps of all rows of its group."""
        return 1 + 2 * WORST_ERROR / self.top

    def max_bytes(self, n: int) -> int:
        """Exact."""
        return HEAD_BYTES * self.rows(n) + self._code_bytes(n)

    def _encode(self, x: Floats, seed: int, first: int, payload: Bytes) -> int:
        parts = self._parts(payload, x.size)
        worst = kernels.mixed.encode(x, self.height, self.bucket, self.bits, seed, first, *parts)
        largest = int(np.float32(MOST / self.gain(x.size)).view(np.int32))  # a larger value might leave float32
        require_finite(worst, self, largest + 1)
        return payload.size

    def _decode(self, payload: Bytes, out: Floats, weight: float, add: bool) -> None:
        require_bytes(payload, self.max_bytes(out.size), self)
        parts = self._parts(payload, out.size)
        if not kernels.mixed.decode(*parts, self.height, self.bucket, self.bits, weight, add, out):
            raise PayloadError(f"codec {self.name!r}: the payload names a row that is none")

    def _parts(self, payload: Bytes, n: int) -> tuple[Floats, Floats, Floats, NDArray[np.uint16], Bytes]:
        rows, codes = self.rows(n), HEAD_BYTES * self.rows(n)
        centres, steps, scales = (payload[4 * rows * k : 4 * rows * (k + 1)].view(np.float32) for k in range(3))
        leaders = payload[12 * rows : codes].view(np.uint16)
        return centres, steps, scales, leaders, payload[codes : self.max_bytes(n)]
