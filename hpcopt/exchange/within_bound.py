"""Sums within a bound: the ranks agree on a grid for each bucket, and integers travel."""

import math
from collections.abc import Hashable, Sequence

import torch
from torch import nn

from hpcopt.comm import dense, doubling, on_grid
from hpcopt.comm.transport import Transport
from hpcopt.compress.bounded import Bounded, Grid
from hpcopt.compress.finite import BOUND_BYTES, magnitude_bound, refuse
from hpcopt.exchange.bucket import Bucket
from hpcopt.exchange.reducer import Reducer

FLOAT32_BITS = 32  # planned where the step is known only once the values are


class BoundedReducer(Reducer):
    """Keeps nothing between steps; tensors that are not float32 travel dense."""

    def __init__(self, codec: Bounded) -> None:
        self._codec = codec

    def kind(self, name: str, parameter: nn.Parameter) -> Hashable:
        return parameter.dtype

    def reduce(self, transport: Transport, bucket: Bucket, step: int) -> None:
        values = bucket.values
        if values.dtype != torch.float32:
            dense.all_reduce(transport, values)
            return
        if transport.size == 1:
            return
        # The largest of all ranks' magnitudes: a maximum, unlike a sum, has the same bits in any order.
        largest = float(doubling.all_reduce(transport, magnitude_bound(values), "max"))
        if math.isinf(largest):
            refuse(values, self._codec)
        on_grid.all_reduce(transport, values, self._codec.grid(largest, transport.size))

    def on_device(self, transport: Transport, bucket: Bucket) -> bool:
        return transport.size == 1

    def warm(self, size: int, buckets: Sequence[Bucket]) -> None:
        if size > 1 and any(bucket.values.is_cpu and bucket.values.dtype == torch.float32 for bucket in buckets):
            on_grid.warm()

    def planned_bytes(self, bucket: Bucket, size: int, rank: int) -> int:
        """With an absolute bound, of which nobody knows how many steps it is, those of whole float32."""
        if bucket.values.dtype != torch.float32:
            return dense.planned_bytes(bucket.nbytes, size, rank)
        agreement = doubling.planned_bytes(BOUND_BYTES, size, rank)
        return agreement + on_grid.planned_bytes(bucket.values.numel(), size, rank, self._planned_grid(size))

    def _planned_grid(self, summands: int) -> Grid:
        if self._codec.of == "largest":
            return self._codec.grid(1.0, summands)
        return Grid(1.0, FLOAT32_BITS, FLOAT32_BITS)
