"""Misbehaving ranks: a vote learns in spite of a minority, a mean does not; and replicas agree all the same."""

import copy

import pytest
import torch
from torch import nn

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World
from hpcopt.exchange import Exchange, RingConfig, VoteConfig
from hpcopt.exchange.adversary import AdversaryConfig

torch.manual_seed(0)
MODEL = nn.Linear(12, 4)


def loss_after(config, lr: float, steps: int = 120) -> float:
    """Mean squared error of a linear map learnt by 4 ranks from their own samples."""

    def program(transport):
        model = copy.deepcopy(MODEL)
        exchange = Exchange(World(transport), model.named_parameters(), config, mean=config.name == "ring")
        for step in range(steps):
            x = torch.randn(16, 12, generator=torch.Generator().manual_seed(10 * step + transport.rank))
            exchange.zero()
            (model(x) - x[:, :4]).square().mean().backward()
            exchange.finish()
            with torch.no_grad():
                for p in model.parameters():
                    p.sub_(p.grad, alpha=lr)
        x = torch.randn(500, 12, generator=torch.Generator().manual_seed(7))
        return (model(x) - x[:, :4]).square().mean().item(), [p.detach() for p in model.parameters()]

    results = run_ranks(4, program)
    for _, parameters in results:
        assert all(torch.equal(p, q) for p, q in zip(parameters, results[0][1], strict=True))
    return results[0][0]


@pytest.mark.parametrize("kind", ["sign_flip", "random", "nan"])
def test_a_vote_learns_with_one_of_four_misbehaving(kind):
    honest = loss_after(VoteConfig(momentum=0.9), lr=0.01)
    attacked = loss_after(VoteConfig(momentum=0.9, adversary={"ranks": [2], "kind": kind, "scale": 10.0}), lr=0.01)
    assert honest < 0.02
    assert attacked < 0.04


def test_a_mean_does_not():
    adversary = AdversaryConfig(ranks=(2,), scale=10.0)
    assert loss_after(RingConfig(), lr=0.5) < 0.01
    assert not loss_after(RingConfig(adversary=adversary), lr=0.5) < 10.0


def test_a_late_rank_changes_nothing():
    late = RingConfig(adversary=AdversaryConfig(ranks=(1,), kind="delay", delay_s=0.002))
    assert loss_after(late, lr=0.5, steps=10) == loss_after(RingConfig(), lr=0.5, steps=10)
