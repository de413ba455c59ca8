"""Exchange of payloads that cannot be summed on the way: two-phase, with error feedback where the codec needs it."""

from collections.abc import Hashable, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from hpcopt.comm import dense, two_phase
from hpcopt.comm.transport import Transport
from hpcopt.compress import QSGD, Codec, CodecConfig, Dense, PerTensor, Residuals
from hpcopt.compress.seeds import EVERY_RANK, derive
from hpcopt.exchange.bucket import Bucket
from hpcopt.exchange.overlap import Overlap
from hpcopt.exchange.reducer import Reducer, Tree, shared_out


class TwoPhaseConfig(Overlap):
    """All-to-all of shards, a sum in float32 at each shard's owner, one more encoding, all-gather."""

    name: Literal["two_phase"] = "two_phase"
    codec: Annotated[CodecConfig | PerTensor, Field(discriminator="name")] = Field(
        QSGD(), description="any codec; per_tensor chooses by parameter"
    )
    feedback: Literal["auto", "error_feedback", "none"] = Field(
        "auto", description="keep what payloads lack for the next step; auto: where the codec is biased"
    )
    seed: int = Field(0, ge=0, description="decides what codecs draw at random")

    def build(self) -> Reducer:
        """Make the reducer."""
        return TwoPhaseReducer(self)


class TwoPhaseReducer(Reducer):
    """Owner of the two residuals: of what this rank sent, and of the sums that it owns."""

    def __init__(self, config: TwoPhaseConfig) -> None:
        self._config = config
        self._sender, self._owner = Residuals(), Residuals()

    def kind(self, name: str, parameter: nn.Parameter) -> Hashable:
        if parameter.dtype != torch.float32:
            return Dense()
        return self._config.codec.for_tensor(name, tuple(parameter.shape))

    def reduce(self, transport: Transport, bucket: Bucket, step: int) -> None:
        codec = bucket.kind
        if not isinstance(codec, Codec) or isinstance(codec, Dense):
            dense.all_reduce(transport, bucket.values)
            return
        feedback = self._config.feedback == "error_feedback" or (self._config.feedback == "auto" and not codec.unbiased)
        sender = EVERY_RANK if codec.shared_seed else transport.rank
        two_phase.all_reduce(
            transport,
            bucket.values,
            codec,
            sender_seed=derive(self._config.seed, step, sender, bucket.name),
            owner_seed=derive(self._config.seed, step, EVERY_RANK, f"sum of {bucket.name}"),
            sender_residual=self._sender.flat(bucket.layout) if feedback else None,
            owner_residual=self._owner.flat(bucket.layout) if feedback else None,
        )

    def planned_bytes(self, bucket: Bucket, size: int, rank: int) -> int:
        if isinstance(bucket.kind, Codec) and not isinstance(bucket.kind, Dense):
            return two_phase.planned_bytes(bucket.values.numel(), size, rank, bucket.kind)
        return dense.planned_bytes(bucket.values.numel() * bucket.values.element_size(), size, rank)

    def state_dict(self) -> Tree:
        return {"sender": self._sender.state_dict(), "owner": self._owner.state_dict()}

    def load_state_dict(self, parts: Sequence[Tree], rank: int, size: int) -> None:
        """Shares out what was owed. An owner's residual counts on its own shard only: with other shards than the saved
        ones it becomes the sender's debt.
        """
        sender, owner = shared_out(parts, "sender", rank, size), shared_out(parts, "owner", rank, size)
        if len(parts) != size:
            sender = {name: sender[name] + owner[name] for name in sender}
            owner = {}
        self._sender.load_state_dict(sender)
        self._owner.load_state_dict(owner)
