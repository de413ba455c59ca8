"""Solvers that need summed gradients say so before they start."""

import pytest

from hpcopt.errors import JobError
from hpcopt.exchange import GossipConfig, NativeConfig, RingConfig, TwoPhaseConfig, VoteConfig, require_sums


@pytest.mark.parametrize("exchange", [RingConfig(), TwoPhaseConfig(), NativeConfig()])
def test_sums_pass(exchange):
    assert require_sums(exchange, "kaisa") is exchange


@pytest.mark.parametrize("exchange", [VoteConfig(), GossipConfig()])
def test_votes_and_gossip_are_refused(exchange):
    with pytest.raises(JobError, match=f'"kaisa" needs summed gradients, which .* "{exchange.name}"'):
        require_sums(exchange, "kaisa")
