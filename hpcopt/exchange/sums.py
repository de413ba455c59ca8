"""Exchanges of payloads that may be summed on the way: dense around our own ring, in half precision, by PowerSGD and
other linear compressors, or dense by the all-reduce of MPI or Horovod.
"""

from collections.abc import Hashable, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field, field_validator
from torch import nn

from hpcopt.comm import dense, reductions
from hpcopt.comm.traffic import dense_all_reduce_bytes
from hpcopt.comm.transport import Transport
from hpcopt.compress import Bounded, Codec, Dense, Half, LinearRounds, RoundCompressor, RoundsConfig
from hpcopt.errors import UnsupportedError
from hpcopt.exchange.bucket import Bucket
from hpcopt.exchange.config import ExchangeConfig
from hpcopt.exchange.reducer import Reducer, Tree, shared_out
from hpcopt.exchange.within_bound import BoundedReducer
from hpcopt.families import CODECS
from hpcopt.seeds import EVERY_RANK, derive


class RingConfig(ExchangeConfig):
    """Sums by our own algorithms: recursive doubling for short tensors, the ring for others. Counts its real bytes."""

    name: Literal["ring"] = "ring"
    codec: Annotated[Codec | RoundsConfig | Bounded, CODECS] = Field(
        Dense(), description="payloads that may be summed on the way"
    )

    @field_validator("codec")
    @classmethod
    def _sums_on_the_way(cls, codec: Codec | RoundsConfig | Bounded) -> Codec | RoundsConfig | Bounded:
        if isinstance(codec, Codec) and not codec.linear:
            raise ValueError(
                f'payloads of codec "{codec.name}" cannot be summed on the way round a ring: '
                'use [exchange] name = "two_phase", or a linear codec: dense, half, random_k, powersgd, '
                "shared_terngrad, shared_topk, bounded"
            )
        return codec

    def build(self, seed: int) -> Reducer:
        """Make the reducer."""
        if isinstance(self.codec, Dense):
            return RingReducer(None)
        if isinstance(self.codec, Half):
            return RingReducer(self.codec.dtype)
        if isinstance(self.codec, Bounded):
            return BoundedReducer(self.codec)
        return RoundsReducer(self.codec, seed)


class NativeConfig(ExchangeConfig):
    """Dense sums by the transport's own all-reduce: MPI_Allreduce, or Horovod's or NCCL's under that backend."""

    name: Literal["native"] = "native"

    @property
    def needs_messages(self) -> bool:
        return False

    def build(self, seed: int) -> Reducer:
        """Make the reducer."""
        return NativeReducer()


class NativeReducer(Reducer):
    """The library's."""

    def reduce(self, transport: Transport, bucket: Bucket, step: int) -> None:
        values = bucket.values
        with transport.traffic.waiting():
            transport.all_reduce(torch.view_as_real(values) if values.is_complex() else values)

    def on_device(self, transport: Transport, bucket: Bucket) -> bool:
        return transport.carries(bucket.values)

    def planned_bytes(self, bucket: Bucket, size: int, rank: int) -> int:
        """Of 2-byte values 4 each: MPI sums them in float32."""
        return dense_all_reduce_bytes(bucket.values.numel() * max(4, bucket.values.element_size()), size)


class RingReducer(Reducer):
    """Ours, with float32 values under way as float32 or as a shorter dtype."""

    def __init__(self, wire: torch.dtype | None) -> None:
        self._wire = wire

    def reduce(self, transport: Transport, bucket: Bucket, step: int) -> None:
        wire = self._wire if bucket.values.dtype == torch.float32 else None
        dense.all_reduce(transport, bucket.values, wire=wire)

    def on_device(self, transport: Transport, bucket: Bucket) -> bool:
        return transport.size == 1

    def planned_bytes(self, bucket: Bucket, size: int, rank: int) -> int:
        whole_bytes = bucket.nbytes
        if self._wire is None or whole_bytes < dense.SHORT_BYTES or bucket.values.dtype != torch.float32:
            return dense.planned_bytes(whole_bytes, size, rank)
        return dense_all_reduce_bytes(bucket.values.numel() * self._wire.itemsize, size)


class RoundsReducer(Reducer):
    """Compressors that work in rounds of plain reductions; tensors that are not float32 travel dense."""

    def __init__(self, codec: Codec | RoundsConfig, seed: int) -> None:
        self._codec, self._seed = codec, seed
        self._compressor = _compressor(codec)
        self._shared_seed = self._compressor.shared_seed

    def kind(self, name: str, parameter: nn.Parameter) -> Hashable:
        return parameter.dtype

    def reduce(self, transport: Transport, bucket: Bucket, step: int) -> None:
        most = self._codec.max_ranks if isinstance(self._codec, RoundsConfig) else None
        if most is not None and transport.size > most:
            raise UnsupportedError(
                f"codec {self._codec.name!r} sums at most {most} ranks, not {transport.size}: "
                '[exchange.codec] sums = "int16" takes more'
            ).everywhere()
        if bucket.values.dtype != torch.float32:
            dense.all_reduce(transport, bucket.values)
            return
        seed = derive(self._seed, step, EVERY_RANK if self._shared_seed else transport.rank, bucket.name)
        reductions.all_reduce(transport, bucket.values, self._compressor, bucket.layout, seed=seed)

    def on_device(self, transport: Transport, bucket: Bucket) -> bool:
        return self._codec.on_device and bucket.values.dtype == torch.float32

    def warm(self, size: int, buckets: Sequence[Bucket]) -> None:
        """Goes through the rounds of the shortest bucket once."""
        ours = [bucket for bucket in buckets if bucket.values.dtype == torch.float32 and bucket.values.is_cpu]
        if ours and size > 1:
            bucket = min(ours, key=lambda bucket: bucket.values.numel())
            for _ in _compressor(self._codec).rounds(torch.ones_like(bucket.values), bucket.layout, seed=0):
                pass

    def planned_bytes(self, bucket: Bucket, size: int, rank: int) -> int:
        """Found by going through the rounds once, with zeros."""
        if bucket.values.dtype != torch.float32:
            return dense.planned_bytes(bucket.nbytes, size, rank)
        total = 0
        for op, buffer in _compressor(self._codec).rounds(torch.zeros(bucket.values.shape), bucket.layout, seed=0):
            buffer_bytes = buffer.numel() * buffer.element_size()
            total += buffer_bytes * (rank == 0) if op == "broadcast" else dense.planned_bytes(buffer_bytes, size, rank)
        return total if size > 1 else 0

    def state_dict(self) -> Tree:
        return {"compressor": self._compressor.state_dict()}

    def load_state_dict(self, parts: Sequence[Tree], rank: int, size: int) -> None:
        state = shared_out(parts, "compressor", rank, size)
        if len(parts) != size:  # a sum of warm starts is none: begin them anew, the same on all ranks
            state = {name: tensor for name, tensor in state.items() if not name.startswith("right/")}
        self._compressor.load_state_dict(state)


def _compressor(codec: Codec | RoundsConfig) -> RoundCompressor:
    return LinearRounds(codec, feedback=not codec.unbiased) if isinstance(codec, Codec) else codec.build()
