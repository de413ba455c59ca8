"""A model's gradients, exchanged between ranks."""

from typing import Annotated

from pydantic import Field

from hpcopt.exchange.dense import NativeConfig, RingConfig
from hpcopt.exchange.exchange import Exchange
from hpcopt.exchange.gossip import GossipConfig
from hpcopt.exchange.two_phase import TwoPhaseConfig
from hpcopt.exchange.vote import VoteConfig

SumConfig = RingConfig | TwoPhaseConfig | VoteConfig | NativeConfig
ExchangeConfig = Annotated[SumConfig | GossipConfig, Field(discriminator="name")]

__all__ = [
    "Exchange",
    "ExchangeConfig",
    "GossipConfig",
    "NativeConfig",
    "RingConfig",
    "SumConfig",
    "TwoPhaseConfig",
    "VoteConfig",
]
