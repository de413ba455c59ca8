"""Every exchange of ours keeps the contract that outsiders' exchanges are held to, and a broken one is found out."""

from typing import ClassVar

import pytest
import torch

from hpcopt.compress import (
    QSGD,
    AdaComp,
    Bounded,
    ChunkedTopK,
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
from hpcopt.exchange import (
    AutoConfig,
    ExchangeConfig,
    LgcConfig,
    NativeConfig,
    Reducer,
    RingConfig,
    TwoPhaseConfig,
    VoteConfig,
)
from hpcopt.exchange.lossy import TwoPhaseReducer
from hpcopt.exchange.sums import RingReducer
from hpcopt.testing import exchange as contract

OURS = [
    RingConfig(),
    NativeConfig(),
    RingConfig(codec=Half()),
    RingConfig(codec=PowerSGD(rank=1, min_compression=1)),
    RingConfig(codec=SharedTernGrad()),
    RingConfig(codec=SharedTopK(fraction=0.1)),
    RingConfig(codec=RandomK(fraction=0.2, scaled=False)),
    RingConfig(codec=Bounded()),
    TwoPhaseConfig(),
    TwoPhaseConfig(codec=PerTensor(otherwise=QSGD(bits=4), rules=(Rule(max_dims=1),))),
    TwoPhaseConfig(codec=Sign()),
    TwoPhaseConfig(codec=TopK(fraction=0.1)),
    TwoPhaseConfig(codec=AdaComp()),
    TwoPhaseConfig(codec=ChunkedTopK(bucket=64, k=8)),
    TwoPhaseConfig(codec=TopK(fraction=0.1), by_nodes=True),
    LgcConfig(fraction=0.1, dense_steps=1, learning_steps=2, worst=1.0),
    VoteConfig(momentum=0.9),
    VoteConfig(momentum=0.9, weights="learned"),
    VoteConfig(weights="learned"),
    AutoConfig(codec=TopK(fraction=0.1), calibration_s=0.02),
    AutoConfig(signs=True, calibration_s=0.02),
    AutoConfig(bounded=Bounded(), calibration_s=0.02),
]


@pytest.mark.parametrize("config", OURS, ids=contract.label)
def test_ours(config):
    contract.check_exchange(config)


class Sums(RingReducer):
    """An exchange that would be right."""

    def __init__(self, seed: int) -> None:
        super().__init__(None)


class RanksDiffer(Sums):
    def reduce(self, transport, bucket, step):
        super().reduce(transport, bucket, step)
        bucket.values += 1e-3 * transport.rank


class HidesNaN(Sums):
    def reduce(self, transport, bucket, step):
        bucket.values.nan_to_num_(posinf=0.0, neginf=0.0)
        super().reduce(transport, bucket, step)


class SendsMore(Sums):
    def planned_bytes(self, bucket, size, rank):
        return super().planned_bytes(bucket, size, rank) // 2


class DrawsFromElsewhere(Sums):
    def reduce(self, transport, bucket, step):
        super().reduce(transport, bucket, step)
        bucket.values += torch.rand(()) if transport.size == 2 else 0


class ForgetsState(Sums):
    steps = 0

    def reduce(self, transport, bucket, step):
        super().reduce(transport, bucket, step)
        bucket.values *= 1 + self.steps

    def finish_step(self, transport, buckets, step):
        self.steps += 1


class KeepsNaN(Sums):
    def __init__(self, seed):
        super().__init__(seed)
        self.total = torch.zeros(1)

    def reduce(self, transport, bucket, step):
        super().reduce(transport, bucket, step)
        self.total += bucket.values.sum()

    def state_dict(self):
        return {"total": self.total}

    def load_state_dict(self, parts, rank, size):
        self.total = parts[0]["total"].clone()


class LosesDebts(TwoPhaseReducer):
    def __init__(self, seed):
        super().__init__(TwoPhaseConfig(codec=TopK(fraction=0.1)), seed)

    def load_state_dict(self, parts, rank, size):
        if len(parts) == size:
            super().load_state_dict(parts, rank, size)


def of(reducer: type[Reducer]) -> ExchangeConfig:
    class Config(ExchangeConfig):
        made: ClassVar = reducer

        def build(self, seed):
            return self.made(seed)

    return Config(bucket_mb=contract.BUCKET_MB)


@pytest.mark.parametrize(
    ("reducer", "check", "words"),
    [
        (RanksDiffer, lambda config: contract.check_equal(config, 2), "ranks differ after a step"),
        (HidesNaN, lambda config: contract.check_not_finite(config, 2), "finite gradients in steps"),
        (SendsMore, lambda config: contract.check_bytes(config, 3), "bytes sent"),
        (DrawsFromElsewhere, contract.check_seed, "other values at the same seed"),
        (ForgetsState, lambda config: contract.check_resume(config, 1), "goes on with other bits"),
        (KeepsNaN, lambda config: contract.check_not_finite(config, 2), "a state keeps it"),
        (KeepsNaN, contract.check_damage, "takes a state of other shapes"),
        (LosesDebts, lambda config: contract.check_resharding(config, 3, 2), "never came out"),
    ],
)
def test_a_broken_one_is_found_out(reducer, check, words):
    with pytest.raises(AssertionError, match=words):
        check(of(reducer))
    check(of(Sums))
