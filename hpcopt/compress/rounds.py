"""Compressors that work in rounds of plain reductions.

PowerSGD needs two all-reduces, one after the other; TernGrad with a shared scale a maximum and a sum; top-k with
shared indices a broadcast and a sum. Each is a generator of reductions, and knows nothing of ranks; the collective
drives it:

    for op, buffer in compressor.rounds(bucket, layout, seed=seed):
        reduce(op, buffer)  # in place, over all ranks

Afterwards ``bucket`` holds the (approximate) sum over the ranks, the same bits on all of them. The first round of each
is ``agree``: where a rank has Inf or NaN the sum is NaN, and no rank's state has changed.
"""

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Mapping
from typing import Literal, NamedTuple, Protocol

from torch import Tensor

from hpcopt.compress.codec import Codec, CodecConfig
from hpcopt.compress.finite import Named, can_be_sent, magnitude_bound, refuse
from hpcopt.compress.residuals import Layout, Residuals
from hpcopt.errors import UnsupportedError


class Reduction(NamedTuple):
    """One collective that the driver performs in place: on return, buffer must hold the same values on every rank."""

    op: Literal["sum", "max", "broadcast"]  # broadcast: from any one rank, the same for the whole bucket
    buffer: Tensor  # contiguous, of any dtype


class RoundCompressor(Protocol):
    """What a collective drives."""

    @property
    def shared_seed(self) -> bool:
        """Whether all ranks must pass the same seed, or each its own."""

    def rounds(self, bucket: Tensor, layout: Layout, *, seed: int) -> Iterator[Reduction]:
        """Sum a flat float32 bucket over the ranks, in place."""

    def settle(self, bucket: Tensor, layout: Layout) -> None:
        """Add to a bucket what is owed for it, which then is owed no more: for one that needs no rounds now."""

    def state_dict(self) -> dict[str, Tensor]:
        """State by name."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over a ``state_dict``."""


class RoundsConfig(CodecConfig, ABC):
    """Settings of a compressor that works in rounds."""

    @property
    def max_ranks(self) -> int | None:
        """The most ranks whose sum the reductions hold, if there is such a number."""
        return None

    @abstractmethod
    def build(self) -> RoundCompressor:
        """Make the compressor."""


def agree(codec: Named, gain: float, bucket: Tensor, owed: Tensor | None = None) -> Generator[Reduction, None, bool]:
    """The round before all others: whether every rank can send what it has; if not, the bucket becomes NaN.

    Args:
        codec: for the message.
        gain: the most by which a magnitude may grow on its way.
        owed: what will be added to the bucket.

    Raises:
        NonFiniteError: on all ranks: the values are too large, or not finite and the codec does not carry that.
    """
    bound = magnitude_bound(bucket) if owed is None else magnitude_bound(bucket, owed)
    yield Reduction("sum", bound)
    if can_be_sent(float(bound), gain, codec):
        return True
    refuse(bucket, codec)
    return False


class LinearRounds:
    """Any linear codec as one round: encode, sum the payloads, decode. With ``feedback``, what a rank's own payload
    lacks is kept for its next step.
    """

    def __init__(self, codec: Codec, *, feedback: bool = False) -> None:
        if not codec.linear:
            raise UnsupportedError(f"codec {codec.name!r} is not linear: use a two-phase or gathering collective")
        self.codec = codec
        self.shared_seed = codec.shared_seed
        self._residuals = Residuals() if feedback else None

    def rounds(self, bucket: Tensor, layout: Layout, *, seed: int) -> Iterator[Reduction]:
        """The sum of the payloads."""
        owed = None if self._residuals is None else self._residuals.flat(layout, bucket.device)
        if not (yield from agree(self.codec, 1 + self.codec.gain(bucket.numel()), bucket, owed)):
            return
        if owed is None:
            payload = self.codec.encode(bucket, seed=seed)
        else:
            payload = self.codec.encode_feedback(bucket, owed, seed=seed)
        yield Reduction("sum", self.codec.summable(payload))
        self.codec.decode(payload, bucket.numel(), out=bucket)

    def settle(self, bucket: Tensor, layout: Layout) -> None:
        """Add what earlier payloads lacked."""
        if self._residuals is not None:
            self._residuals.settle(bucket, layout)

    def state_dict(self) -> dict[str, Tensor]:
        """The residuals by parameter name."""
        return {} if self._residuals is None else self._residuals.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over a ``state_dict``."""
        if self._residuals is not None:
            self._residuals.load_state_dict(state)
