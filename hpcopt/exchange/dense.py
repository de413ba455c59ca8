"""Exchanges of gradients as they are: around our own ring, or by the all-reduce of MPI or Horovod."""

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from hpcopt.comm.traffic import dense_all_reduce_bytes
from hpcopt.comm.world import World
from hpcopt.config import Config
from hpcopt.exchange.flat import FlatGradients


class RingConfig(Config):
    """Dense sums by our own algorithms: recursive doubling for short tensors, the ring for others. Counts its real
    bytes.
    """

    name: Literal["ring"] = "ring"

    def build(self, world: World) -> "DenseExchange":
        """Make the exchange. Raises UnsupportedError where the transport has no messages between two ranks."""
        return DenseExchange(world, native=False)


class NativeConfig(Config):
    """Dense sums by the transport's own all-reduce: MPI_Allreduce or Horovod."""

    name: Literal["native"] = "native"

    def build(self, world: World) -> "DenseExchange":
        """Make the exchange."""
        return DenseExchange(world, native=True)


ExchangeConfig = Annotated[RingConfig | NativeConfig, Field(discriminator="name")]


class DenseExchange:
    """Sums float gradients over all ranks, bit-equal on all of them."""

    def __init__(self, world: World, *, native: bool) -> None:
        self._world, self._native = world, native

    def sum(self, gradients: FlatGradients) -> None:
        """Replace the gradients by their sums over the ranks. Collective."""
        for buffer in gradients.buffers:
            self._world.traffic.dense_bytes += self.planned_bytes(buffer)
            if self._native:
                self._world.transport.all_reduce(buffer)
            else:
                self._world.all_reduce(buffer)

    def planned_bytes(self, buffer: Tensor) -> int:
        """Bytes that this rank sends for a buffer, at least."""
        return dense_all_reduce_bytes(buffer.numel() * buffer.element_size(), self._world.size)
