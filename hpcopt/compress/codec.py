"""What a collective may ask of a codec.

A codec turns a flat float32 tensor into a payload, a contiguous uint8 tensor that travels as it is, and back. It knows nothing of ranks. Its promises
(unbiased, linear, contraction) are data, so that a collective can pick its algorithm from them and refuse what would be wrong.
"""

from typing import Protocol

from torch import Tensor


class Codec(Protocol):
    """Tensor -> payload -> tensor. Stateless: the same (x, seed) gives the same bytes on any machine, with any number of threads."""

    @property
    def name(self) -> str:
        """The codec's name in a job file."""

    @property
    def unbiased(self) -> bool:
        """Whether the mean of decode(encode(x)) over seeds is x."""

    @property
    def linear(self) -> bool:
        """Whether payloads of several ranks may be summed on the way (their decoded sum is the sum of the decoded)."""

    def contraction(self, n: int) -> float | None:
        """The delta in (0, 1] of ``E |C(x) - x|^2 <= (1 - delta) |x|^2`` for n values, or None if the codec does not contract."""

    def max_bytes(self, n: int) -> int:
        """Upper bound of the payload's size in bytes for n values."""

    def encode(self, x: Tensor, *, seed: int) -> Tensor:
        """Turn x, shape (n,), float32, contiguous, into its payload, shape (<= max_bytes(n),), uint8."""

    def decode(self, payload: Tensor, n: int, out: Tensor | None = None) -> Tensor:
        """Turn a payload back into n float32 values, written to out, shape (n,), if it is given."""
