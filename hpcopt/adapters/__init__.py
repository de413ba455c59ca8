"""hpcopt's codecs and collectives inside somebody else's data parallelism: a hook for DDP, a compressor for Horovod."""

from hpcopt.adapters.ddp import DdpExchange, ddp_hook
from hpcopt.adapters.horovod import HorovodCompressor

__all__ = ["DdpExchange", "HorovodCompressor", "ddp_hook"]
