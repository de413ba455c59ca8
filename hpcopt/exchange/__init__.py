"""A model's gradients, exchanged between ranks."""

from hpcopt.exchange.auto import AutoConfig
from hpcopt.exchange.choice import require_sums
from hpcopt.exchange.config import ExchangeConfig
from hpcopt.exchange.dense import NativeConfig, RingConfig
from hpcopt.exchange.exchange import Exchange
from hpcopt.exchange.gossip import GossipConfig
from hpcopt.exchange.overlap import Overlap
from hpcopt.exchange.two_phase import TwoPhaseConfig
from hpcopt.exchange.vote import VoteConfig

__all__ = [
    "AutoConfig",
    "Exchange",
    "ExchangeConfig",
    "GossipConfig",
    "NativeConfig",
    "Overlap",
    "RingConfig",
    "TwoPhaseConfig",
    "VoteConfig",
    "require_sums",
]
