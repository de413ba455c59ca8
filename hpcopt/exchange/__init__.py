"""A model's gradients, exchanged between ranks."""

from hpcopt.exchange.auto import AutoConfig
from hpcopt.exchange.bucket import Bucket
from hpcopt.exchange.config import ExchangeConfig
from hpcopt.exchange.exchange import Exchange
from hpcopt.exchange.lgc.reducer import LgcConfig
from hpcopt.exchange.lossy import TwoPhaseConfig
from hpcopt.exchange.reducer import Reducer
from hpcopt.exchange.signs import VoteConfig
from hpcopt.exchange.sums import NativeConfig, RingConfig

__all__ = [
    "AutoConfig",
    "Bucket",
    "Exchange",
    "ExchangeConfig",
    "LgcConfig",
    "NativeConfig",
    "Reducer",
    "RingConfig",
    "TwoPhaseConfig",
    "VoteConfig",
]
