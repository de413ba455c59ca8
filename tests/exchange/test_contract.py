"""Every exchange of ours keeps the contract that outsiders' exchanges are held to, and a broken one is found out."""

import pytest

from hpcopt.compress import (
    QSGD,
    AdaComp,
    Half,
    PerTensor,
    PowerSGD,
    RandomK,
    Rule,
    SharedTernGrad,
    SharedTopK,
    Sign,
    TopK,
)
from hpcopt.exchange import AutoConfig, NativeConfig, RingConfig, TwoPhaseConfig, VoteConfig
from hpcopt.testing import exchange as contract

OURS = [
    RingConfig(),
    NativeConfig(),
    RingConfig(codec=Half()),
    RingConfig(codec=PowerSGD(rank=1, min_compression=1)),
    RingConfig(codec=SharedTernGrad()),
    RingConfig(codec=SharedTopK(fraction=0.1)),
    RingConfig(codec=RandomK(fraction=0.2, scaled=False)),
    TwoPhaseConfig(),
    TwoPhaseConfig(codec=PerTensor(otherwise=QSGD(bits=4), rules=(Rule(max_dims=1),))),
    TwoPhaseConfig(codec=Sign()),
    TwoPhaseConfig(codec=TopK(fraction=0.1)),
    TwoPhaseConfig(codec=AdaComp()),
    TwoPhaseConfig(codec=TopK(fraction=0.1), by_nodes=True),
    VoteConfig(momentum=0.9),
    VoteConfig(momentum=0.9, weights="learned"),
    VoteConfig(weights="learned"),
    AutoConfig(codec=TopK(fraction=0.1), calibration_s=0.02),
]


@pytest.mark.parametrize("config", OURS, ids=contract.label)
def test_ours(config):
    contract.check_exchange(config)
