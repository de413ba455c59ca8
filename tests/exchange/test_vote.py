"""Who decides ties in an exchange of votes."""

import itertools

import pytest
import torch
from torch import nn

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World
from hpcopt.exchange import Exchange, VoteConfig


def outcomes(gradients: torch.Tensor, config: VoteConfig, steps: int) -> list[torch.Tensor]:
    """What one parameter's gradient becomes at each step, with gradients of shape (ranks, n), the same at all steps."""

    def program(transport):
        parameter = nn.Parameter(torch.zeros(gradients.shape[1]))
        exchange = Exchange(World(transport), [("x", parameter)], config)
        seen = []
        for _ in range(steps):
            exchange.zero()
            (parameter * gradients[transport.rank]).sum().backward()
            exchange.finish()
            seen.append(parameter.grad.clone())
        return seen

    return run_ranks(len(gradients), program)[0]


@pytest.mark.parametrize("size", [2, 3, 4, 6])
def test_the_casting_vote_decides_ties_and_nothing_else(size):
    gradients = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=size))).T
    total = gradients.sum(0)
    assert (total == 0).any() == (size % 2 == 0)
    for step, outcome in enumerate(outcomes(gradients, VoteConfig(), 2 * size)):
        assert torch.equal(outcome, torch.where(total == 0, gradients[step % size], total.sign()))


def test_noise_does_not_push():
    """Fair coins: the mean outcome is zero; if ties were plus it would be their share, 3 / 8 of 4 ranks."""
    coins = torch.randn(4, 20_000, generator=torch.Generator().manual_seed(0))
    (in_turn,) = outcomes(coins, VoteConfig(), 1)
    (plus,) = outcomes(coins, VoteConfig(ties="plus"), 1)
    assert abs(in_turn.mean()) < 0.03
    assert abs(plus.mean() - 3 / 8) < 0.03


def test_weights_that_are_given_are_kept():
    gradients = torch.tensor([[-1.0, 1.0], [1.0, -1.0], [1.0, -1.0], [1.0, 1.0]])
    for outcome in outcomes(gradients, VoteConfig(weights=(3, 1, 1, 1)), 4):
        assert outcome.tolist() == [1.0, 1.0]  # 3 against 3: a tie is plus
