"""Collectives on flat tensors, and the transports under them."""

from typing import TYPE_CHECKING

from hpcopt.lazily import lazily

if TYPE_CHECKING:
    from hpcopt.comm.loopback import run_ranks
    from hpcopt.comm.traffic import Traffic
    from hpcopt.comm.transport import Transport
    from hpcopt.comm.world import World, alone, connect

__all__ = ["Traffic", "Transport", "World", "alone", "connect", "run_ranks"]

__getattr__ = lazily(
    __name__,
    {
        "Traffic": "traffic",
        "Transport": "transport",
        "World": "world",
        "alone": "world",
        "connect": "world",
        "run_ranks": "loopback",
    },
)
