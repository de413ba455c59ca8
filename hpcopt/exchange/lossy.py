"""Exchange of payloads that cannot be summed on the way: two-phase, with error feedback where the codec needs it."""

import math
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from hpcopt.comm import dense, doubling, two_phase
from hpcopt.comm.hierarchy import Hierarchy
from hpcopt.comm.transport import Transport
from hpcopt.comm.world import World
from hpcopt.compress import QSGD, Codec, Dense, PerTensor, Residuals
from hpcopt.compress.finite import BOUND_BYTES, MOST, can_be_sent, magnitude_bound, refuse
from hpcopt.exchange.bucket import Bucket
from hpcopt.exchange.config import ExchangeConfig
from hpcopt.exchange.reducer import Reducer, Tree, shared_out
from hpcopt.families import CODECS
from hpcopt.seeds import EVERY_RANK, derive

AnyCodec = Annotated[Codec | PerTensor, CODECS]


class Lossy(ExchangeConfig):
    """What exchanges have in common that may send less than the gradients."""

    feedback: Literal["auto", "error_feedback", "none"] = Field(
        "auto", description="keep what payloads lack for the next step; auto: where the codec is biased"
    )


class TwoPhaseConfig(Lossy):
    """All-to-all of shards, a sum in float32 at each shard's owner, one more encoding, all-gather."""

    name: Literal["two_phase"] = "two_phase"
    codec: AnyCodec = Field(QSGD(), description="any codec; per_tensor chooses by parameter")
    by_nodes: bool = Field(False, description="dense inside each node, the codec between nodes only")

    @property
    def needs_messages(self) -> bool:
        return self.by_nodes

    def build(self, seed: int) -> Reducer:
        """Make the reducer."""
        return TwoPhaseReducer(self, seed)


class TwoPhaseReducer(Reducer):
    """Owner of the two residuals: of what this rank sent, and of the sums that it owns."""

    def __init__(self, config: TwoPhaseConfig, seed: int) -> None:
        self._config, self._seed = config, seed
        self._sender, self._owner = Residuals(), Residuals()
        self._owed_bounds: dict[int, float] = {}  # by bucket: the same on all ranks, that of the sum over them
        self._hierarchy: Hierarchy | None = None
        self._node = 0

    def kind(self, name: str, parameter: nn.Parameter) -> Hashable:
        if parameter.dtype != torch.float32:
            return Dense()
        return self._config.codec.for_tensor(name, tuple(parameter.shape))

    def prepare(self, world: World, transport: Transport, buckets: Sequence[Bucket]) -> None:
        """Find the nodes, unless this is a rehearsal."""
        self._owed_bounds.clear()
        if self._config.by_nodes and transport.point_to_point:
            self._hierarchy, self._node = Hierarchy(transport, world.node), world.node

    def reduce(self, transport: Transport, bucket: Bucket, step: int) -> None:
        codec = bucket.kind
        if not isinstance(codec, Codec) or isinstance(codec, Dense):
            dense.all_reduce(transport, bucket.values)
            return
        feedback = self.keeps_residuals(codec)
        device = bucket.values.device
        owed = self._sender.flat(bucket.layout, device) if feedback else None
        owed_of_sum = self._owner.flat(bucket.layout, device) if feedback else None
        if not self._agree(transport, bucket, codec, owed, owed_of_sum):
            return
        sender = transport.rank
        all_reduce: Callable[..., object] = partial(two_phase.all_reduce, transport)
        if self._hierarchy is not None:
            sender, all_reduce = self._node, self._hierarchy.two_phase
            if owed is not None:  # only this lane's chunk would count, and a debt may be of other lanes than these
                bucket.values += owed
                owed.zero_()
        all_reduce(
            bucket.values,
            codec,
            sender_seed=derive(self._seed, step, EVERY_RANK if codec.shared_seed else sender, bucket.name),
            owner_seed=derive(self._seed, step, EVERY_RANK, f"sum of {bucket.name}"),
            sender_residual=owed,
            owner_residual=owed_of_sum,
        )

    def on_device(self, transport: Transport, bucket: Bucket) -> bool:
        codec = bucket.kind
        able = isinstance(codec, Codec) and codec.on_device and not isinstance(codec, Dense)
        return (able or transport.size == 1) and self._hierarchy is None

    def _agree(self, transport: Transport, bucket: Bucket, codec: Codec, *owed: Tensor | None) -> bool:
        """Whether all ranks can send what they have; if not, the values become NaN. Both encodings may enlarge them,
        and what they leave in residuals.

        What is owed is looked at once in some 50 steps: it is at most what all ranks brought, times the gain, and that
        bound does until it is too large.
        """
        debts = [tensor for tensor in owed if tensor is not None]
        gain = (1 + codec.gain(bucket.values.numel())) ** 2
        bound = agreed_bound(transport, bucket.values, *([] if bucket.index in self._owed_bounds else debts))
        bound += self._owed_bounds.get(bucket.index, 0.0)
        if MOST / gain < bound < math.inf and debts:
            bound = agreed_bound(transport, bucket.values, *debts)
        if can_be_sent(bound, gain, codec):
            self._owed_bounds[bucket.index] = bound * gain if debts else 0.0
            return True
        refuse(bucket.values, codec)
        return False

    def keeps_residuals(self, codec: Codec) -> bool:
        """Whether what this codec's payloads lack is kept."""
        feedback = self._config.feedback
        return feedback == "error_feedback" or (feedback == "auto" and not codec.unbiased)

    def settle(self, bucket: Bucket) -> None:
        """Add what is owed for a bucket to its values, for one that goes another way from now on."""
        for residuals in (self._sender, self._owner):
            residuals.settle(bucket.values, bucket.layout)

    def planned_bytes(self, bucket: Bucket, size: int, rank: int) -> int:
        if isinstance(bucket.kind, Codec) and not isinstance(bucket.kind, Dense):
            agreement = doubling.planned_bytes(BOUND_BYTES, size, rank)
            if self._config.by_nodes:
                return agreement + by_nodes_bytes(self._hierarchy, bucket.values.numel(), size, bucket.kind)
            return agreement + two_phase.planned_bytes(bucket.values.numel(), size, rank, bucket.kind)
        return dense.planned_bytes(bucket.nbytes, size, rank)

    def state_dict(self) -> Tree:
        state = {"sender": self._sender.state_dict(), "owner": self._owner.state_dict()}
        return state if self._hierarchy is None else {**state, "place": self._hierarchy.place}

    def load_state_dict(self, parts: Sequence[Tree], rank: int, size: int) -> None:
        """Shares out what was owed. An owner's residual counts on its own shard only: with other shards than the saved
        ones it becomes the sender's debt.
        """
        self._owed_bounds.clear()
        sender, owner = shared_out(parts, "sender", rank, size), shared_out(parts, "owner", rank, size)
        if len(parts) != size or (self._hierarchy and parts[rank].get("place") != self._hierarchy.place):
            sender = {name: sender[name] + owner[name] for name in sender}
            owner = {}
        self._sender.load_state_dict(sender)
        self._owner.load_state_dict(owner)


def agreed_bound(transport: Transport, *terms: Tensor) -> float:
    """No magnitude in the sum of all ranks' terms is above this; Inf if one holds Inf or NaN. Collective."""
    return float(dense.all_reduce(transport, magnitude_bound(*terms)))


def by_nodes_bytes(hierarchy: Hierarchy | None, n: int, size: int, codec: Codec) -> int:
    """The most bytes that a rank sends; in a rehearsal, which knows of no nodes, those of a dense sum."""
    return dense.planned_bytes(4 * n, size, 0) if hierarchy is None else hierarchy.planned_bytes(n, codec)
