"""The ways that a bucket can go: each says what it would take, what it sends, and carries."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch

from hpcopt.comm import alpha_beta, dense, doubling
from hpcopt.comm.alpha_beta import CodecCost, Machine
from hpcopt.comm.traffic import dense_all_reduce_bytes
from hpcopt.comm.transport import Transport
from hpcopt.compress import Half
from hpcopt.compress.finite import BOUND_BYTES
from hpcopt.exchange.bucket import Bucket
from hpcopt.exchange.lossy import TwoPhaseReducer
from hpcopt.exchange.sums import NativeReducer


class Way(ABC):
    """One collective.

    Attributes:
        name: in logs, metrics and checkpoints.
    """

    name: ClassVar[str]

    @abstractmethod
    def predicted_s(self, machine: Machine, bucket: Bucket, codec: CodecCost | None) -> float | None:
        """Seconds for a bucket, or None if it cannot go this way.

        Args:
            codec: cost of the codec that the bucket may travel in, if any.
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
    """Around the ring in half precision: for buckets of codec half, and as bfloat16 for those of any other that loses
    something. ``codec`` is here what half costs.
    """

    name = "half_ring"

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

    def predicted_s(self, machine: Machine, bucket: Bucket, codec: CodecCost | None) -> float | None:
        if codec is None or isinstance(bucket.kind, Half):
            return None
        agree_s = alpha_beta.doubling_s(machine, BOUND_BYTES)
        return agree_s + alpha_beta.two_phase_s(machine, bucket.nbytes, codec)

    def carry(self, transport: Transport, bucket: Bucket, step: int) -> None:
        self.reducer.reduce(transport, bucket, step)

    def planned_bytes(self, bucket: Bucket, size: int, rank: int) -> int:
        return self.reducer.planned_bytes(bucket, size, rank)


class TwoPhaseByNodes(TwoPhase):
    """Dense inside each node, in two phases between nodes: where there are nodes of several ranks."""

    name = "two_phase_by_nodes"

    def predicted_s(self, machine: Machine, bucket: Bucket, codec: CodecCost | None) -> float | None:
        if codec is None or isinstance(bucket.kind, Half) or not 1 < max(machine.nodes) + 1 < machine.size:
            return None
        agree_s = alpha_beta.doubling_s(machine, BOUND_BYTES)
        return agree_s + alpha_beta.two_phase_by_nodes_s(machine, bucket.nbytes, codec)
