"""A model's gradients, exchanged between ranks."""

from typing import Annotated

from pydantic import Field

from hpcopt.exchange.dense import NativeConfig, RingConfig
from hpcopt.exchange.exchange import Exchange
from hpcopt.exchange.two_phase import TwoPhaseConfig
from hpcopt.exchange.vote import VoteConfig

ExchangeConfig = Annotated[RingConfig | TwoPhaseConfig | VoteConfig | NativeConfig, Field(discriminator="name")]

__all__ = ["Exchange", "ExchangeConfig", "NativeConfig", "RingConfig", "TwoPhaseConfig", "VoteConfig"]
