"""The choices of ``[exchange]``."""

from typing import Annotated

from pydantic import Field

from hpcopt.errors import JobError
from hpcopt.exchange.auto import AutoConfig
from hpcopt.exchange.dense import NativeConfig, RingConfig
from hpcopt.exchange.gossip import GossipConfig
from hpcopt.exchange.two_phase import TwoPhaseConfig
from hpcopt.exchange.vote import VoteConfig

SumConfig = AutoConfig | RingConfig | TwoPhaseConfig | VoteConfig | NativeConfig
ExchangeConfig = Annotated[SumConfig | GossipConfig, Field(discriminator="name")]


def require_sums(exchange: ExchangeConfig, solver: str) -> AutoConfig | RingConfig | TwoPhaseConfig | NativeConfig:
    """Give an exchange that leaves the sum of the ranks' gradients, or something close to it.

    Raises:
        JobError: on all ranks: this one leaves something else.
    """
    if isinstance(exchange, VoteConfig | GossipConfig):
        raise JobError(
            f'[solver] name = "{solver}" needs summed gradients, which [exchange] name = "{exchange.name}" does not '
            'give: use "ring", "two_phase" or "native"'
        ).everywhere()
    return exchange
