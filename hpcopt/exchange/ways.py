"""The ways that a bucket can go: each says what it would take, what it sends, and carries."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch

from hpcopt.comm import alpha_beta, dense, doubling
from hpcopt.comm.alpha_beta import CodecCost, Machine
from hpcopt.comm.traffic import dense_all_reduce_bytes
from hpcopt.comm.transport import Transport
from hpcopt.compress import Bounded, Codec, CodecConfig, Dense, Half, SignBits
from hpcopt.compress.finite import BOUND_BYTES
from hpcopt.exchange.bucket import Bucket
from hpcopt.exchange.lossy import TwoPhaseReducer
from hpcopt.exchange.signs import VoteReducer
from hpcopt.exchange.sums import NativeReducer
from hpcopt.exchange.within_bound import BoundedReducer


class Way(ABC):
    """One collective.

    Attributes:
        name: in logs, metrics and checkpoints.
    """

    name: ClassVar[str]

    def codec(self, bucket: Bucket) -> CodecConfig | None:
        """What the bucket would travel in, if that is not the values themselves."""
        return None

    @abstractmethod
    def predicted_s(self, machine: Machine, bucket: Bucket, codec: CodecCost | None) -> float | None:
        """Seconds for a bucket, or None if it cannot go this way.

        Args:
            codec: cost of the way's ``codec``, if that was measured.
        """

    @abstractmethod
    def carry(self, transport: Transport, bucket: Bucket, step: int) -> None:
        """Replace the bucket's values by their sum over the ranks, or nearly so. Collective."""

    @abstractmethod
    def planned_bytes(self, bucket: Bucket, size: int, rank: int) -> int:
        """The most bytes that a rank of ``size`` sends for the bucket."""


class Native(Way):
    """By the transport's own all-reduce."""

    name = "native"

    def __init__(self) -> None:
        self._reducer = NativeReducer()

    def predicted_s(self, machine: Machine, bucket: Bucket, codec: CodecCost | None) -> float | None:
        return alpha_beta.native_s(machine, bucket.nbytes)

    def carry(self, transport: Transport, bucket: Bucket, step: int) -> None:
        self._reducer.reduce(transport, bucket, step)

    def planned_bytes(self, bucket: Bucket, size: int, rank: int) -> int:
        return self._reducer.planned_bytes(bucket, size, rank)


class Doubling(Way):
    """By recursive doubling."""

    name = "doubling"

    def predicted_s(self, machine: Machine, bucket: Bucket, codec: CodecCost | None) -> float | None:
        return alpha_beta.doubling_s(machine, bucket.nbytes)

    def carry(self, transport: Transport, bucket: Bucket, step: int) -> None:
        doubling.all_reduce(transport, bucket.values)

    def planned_bytes(self, bucket: Bucket, size: int, rank: int) -> int:
        return doubling.planned_bytes(bucket.nbytes, size, rank)


class Ring(Way):
    """Around the ring, or by way of memory where all ranks share it."""

    name = "ring"

    def predicted_s(self, machine: Machine, bucket: Bucket, codec: CodecCost | None) -> float | None:
        return alpha_beta.long_s(machine, bucket.nbytes)

    def carry(self, transport: Transport, bucket: Bucket, step: int) -> None:
        dense.long(transport, bucket.values)

    def planned_bytes(self, bucket: Bucket, size: int, rank: int) -> int:
        return dense_all_reduce_bytes(bucket.nbytes, size)


class HalfRing(Way):
    """Around the ring in half precision: for buckets of codec half, and as bfloat16 for those that may lose as much."""

    name = "half_ring"

    def __init__(self, always: bool) -> None:
        """With ``always``, for those too that are to travel dense."""
        self._always = always

    def codec(self, bucket: Bucket) -> CodecConfig | None:
        if isinstance(bucket.kind, Half):
            return bucket.kind
        return Half() if self._always or lossy_codec(bucket) else None

    def predicted_s(self, machine: Machine, bucket: Bucket, codec: CodecCost | None) -> float | None:
        return None if codec is None else alpha_beta.ring_s(machine, bucket.nbytes, codec)

    def carry(self, transport: Transport, bucket: Bucket, step: int) -> None:
        dense.long(transport, bucket.values, wire=self._wire(bucket))

    def planned_bytes(self, bucket: Bucket, size: int, rank: int) -> int:
        return dense_all_reduce_bytes(bucket.values.numel() * self._wire(bucket).itemsize, size)

    def _wire(self, bucket: Bucket) -> torch.dtype:
        return bucket.kind.dtype if isinstance(bucket.kind, Half) else Half().dtype


class TwoPhase(Way):
    """In two phases, with the bucket's codec."""

    name = "two_phase"

    def __init__(self, reducer: TwoPhaseReducer) -> None:
        self.reducer = reducer

    def codec(self, bucket: Bucket) -> CodecConfig | None:
        return None if isinstance(bucket.kind, Half) else lossy_codec(bucket)

    def predicted_s(self, machine: Machine, bucket: Bucket, codec: CodecCost | None) -> float | None:
        return _agreed_two_phase_s(machine, bucket, codec)

    def carry(self, transport: Transport, bucket: Bucket, step: int) -> None:
        self.reducer.reduce(transport, bucket, step)

    def planned_bytes(self, bucket: Bucket, size: int, rank: int) -> int:
        return self.reducer.planned_bytes(bucket, size, rank)


class TwoPhaseByNodes(TwoPhase):
    """Dense inside each node, in two phases between nodes: where there are nodes of several ranks."""

    name = "two_phase_by_nodes"

    def predicted_s(self, machine: Machine, bucket: Bucket, codec: CodecCost | None) -> float | None:
        if codec is None or not 1 < max(machine.nodes) + 1 < machine.size:
            return None
        agree_s = alpha_beta.doubling_s(machine, BOUND_BYTES)
        return agree_s + alpha_beta.two_phase_by_nodes_s(machine, bucket.nbytes, codec)


class WithinBound(Way):
    """On a grid that keeps the sum within a bound."""

    name = "bounded"

    def __init__(self, bounded: Bounded) -> None:
        self._bounded, self._reducer = bounded, BoundedReducer(bounded)

    def codec(self, bucket: Bucket) -> CodecConfig | None:
        return self._bounded if bucket.values.dtype == torch.float32 else None

    def predicted_s(self, machine: Machine, bucket: Bucket, codec: CodecCost | None) -> float | None:
        return _agreed_two_phase_s(machine, bucket, codec)

    def carry(self, transport: Transport, bucket: Bucket, step: int) -> None:
        self._reducer.reduce(transport, bucket, step)

    def planned_bytes(self, bucket: Bucket, size: int, rank: int) -> int:
        return self._reducer.planned_bytes(bucket, size, rank)


class Vote(Way):
    """By the majority of the ranks' signs, where signs are all that is asked for."""

    name = "vote"

    def __init__(self, reducer: VoteReducer) -> None:
        self._reducer = reducer

    def codec(self, bucket: Bucket) -> CodecConfig | None:
        return SignBits()

    def predicted_s(self, machine: Machine, bucket: Bucket, codec: CodecCost | None) -> float | None:
        return None if codec is None else alpha_beta.two_phase_s(machine, bucket.nbytes, codec)

    def carry(self, transport: Transport, bucket: Bucket, step: int) -> None:
        self._reducer.reduce(transport, bucket, step)

    def planned_bytes(self, bucket: Bucket, size: int, rank: int) -> int:
        return self._reducer.planned_bytes(bucket, size, rank)


def lossy_codec(bucket: Bucket) -> Codec | None:
    """What the job lets the bucket travel in, if that loses anything."""
    return bucket.kind if isinstance(bucket.kind, Codec) and not isinstance(bucket.kind, Dense) else None


def _agreed_two_phase_s(machine: Machine, bucket: Bucket, codec: CodecCost | None) -> float | None:
    if codec is None:
        return None
    return alpha_beta.doubling_s(machine, BOUND_BYTES) + alpha_beta.two_phase_s(machine, bucket.nbytes, codec)
