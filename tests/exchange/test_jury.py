"""Learned votes: counted right, the same on all ranks, taken from liars and from nobody else."""

import copy

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World
from hpcopt.exchange import Exchange, VoteConfig
from hpcopt.exchange.adversary import AdversaryConfig
from hpcopt.exchange.jury import EVERY, MEMORY, Jury, voters

torch.manual_seed(0)
MODEL = nn.Sequential(nn.Linear(24, 40), nn.Tanh(), nn.Linear(40, 4))
LEARNED = VoteConfig(momentum=0.9, weights="learned", bucket_mb=0.002)


class Learner:
    """A regression learnt by signs on one rank, with as many samples a step as its rank is given."""

    def __init__(self, transport, config: VoteConfig, samples: int = 16) -> None:
        self.model, self._rank, self._samples = copy.deepcopy(MODEL), transport.rank, samples
        self.exchange = Exchange(World(transport), self.model.named_parameters(), config)
        self.seats: list[list[int]] = []

    def learn(self, steps: range) -> "Learner":
        for step in steps:
            generator = torch.Generator().manual_seed(10 * step + self._rank)
            x = torch.randn(self._samples, 24, generator=generator)
            target = x[:, :4] * x[:, 4:8] + x[:, :4]
            self.exchange.zero()
            (self.model(x) - target).square().mean().backward()
            self.exchange.finish()
            with torch.no_grad():
                for p in self.model.parameters():
                    p.sub_(p.grad, alpha=0.003)
            agreement = self.exchange.rank_state_dict()["reducer"].get("agreement")
            self.seats.append([] if agreement is None else voters(agreement.tolist()))
        return self

    def parameters(self) -> torch.Tensor:
        return torch.cat([p.detach().reshape(-1) for p in self.model.parameters()])


def liars(*ranks: int, kind: str = "sign_flip") -> VoteConfig:
    return LEARNED.model_copy(update={"adversary": AdversaryConfig(ranks=ranks, kind=kind, scale=4.0)})


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_counts_are_those_of_numpy_and_old_ones_fade(size):
    n, steps = 1000, 3 * EVERY
    gradients = torch.randn(steps, size, n, generator=torch.Generator().manual_seed(size))

    def program(transport):
        parameter = nn.Parameter(torch.zeros(n))
        exchange = Exchange(World(transport), [("x", parameter)], VoteConfig(weights="learned"))
        for step in range(steps):
            exchange.zero()
            (parameter * gradients[step, transport.rank]).sum().backward()
            exchange.finish()
        return exchange.rank_state_dict()["reducer"]["agreement"].numpy()

    expected = np.zeros((size, size), np.int64)
    for step in range(EVERY - 1, steps, EVERY):
        signs = np.where(gradients[step].numpy() < 0, -1, 1)
        padding = -n % 64  # of the last word, where all agree
        expected = expected - expected // MEMORY + signs @ signs.T + padding
    for found in run_ranks(size, program):
        assert (found == expected).all()


def agreement(ballots: torch.Tensor) -> list[list[int]]:
    """Of ballots of +1 and -1, shape (P, n)."""
    return (ballots.long() @ ballots.long().T).tolist()


def ballots(noises: list[float], flipped: tuple[int, ...] = (), n: int = 20_000) -> torch.Tensor:
    """Signs of a common truth and a rank's own noise; inf is noise alone."""
    generator = torch.Generator().manual_seed(1)
    truth = torch.randn(n, generator=generator)
    values = [
        (0 if noise == np.inf else truth) + min(noise, 1e3) * torch.randn(n, generator=generator) for noise in noises
    ]
    return torch.stack([torch.where((-v if r in flipped else v) < 0, -1, 1) for r, v in enumerate(values)])


@pytest.mark.parametrize(
    ("noises", "flipped", "seated"),
    [
        ([1.5] * 4, (), [0, 1, 2, 3]),
        ([0.5, 1.5, 3.0, 4.0], (), [0, 1, 2, 3]),
        ([1.5] * 4, (3,), [0, 1, 2]),
        ([1.5, 1.5, 1.5, 0.5], (3,), [0, 1, 2]),
        ([1.5] * 3, (0,), [1, 2]),
        ([1.5] * 5, (1, 4), [0, 2, 3]),
        ([1.5] * 9, (0, 1, 2, 3), [4, 5, 6, 7, 8]),
        ([1.5, 1.5, np.inf, 1.5], (), [0, 1, 3]),
        ([np.inf] * 5, (), [0, 1, 2, 3, 4]),
        ([1.5] * 4, (0, 1), [0, 1, 2, 3]),
        ([1.5] * 2, (1,), [0, 1]),
        ([1.5], (), [0]),
    ],
)
def test_who_has_a_vote(noises, flipped, seated):
    assert voters(agreement(ballots(noises, flipped))) == seated


def test_a_liar_is_found_where_it_lowers_the_median_below_zero():
    """Honest pairs agree in 3 of 100 elections more than they differ, the liar differs in 9 more: as late in a run."""
    a = torch.full((4, 4), 300)
    a[3], a[:, 3] = -900, -900
    a.fill_diagonal_(10_000)
    assert voters(a.tolist()) == [0, 1, 2]


def test_more_than_half_always_have_one():
    generator = torch.Generator().manual_seed(0)
    for size in range(1, 10):
        for _ in range(50):
            a = torch.randint(-100, 100, (size, size), generator=generator)
            a = a + a.T
            a.fill_diagonal_(200)
            assert 2 * len(voters(a.tolist())) > size


def test_all_vote_before_anything_is_known():
    assert Jury(4).voters == [0, 1, 2, 3]


@pytest.mark.parametrize(("size", "bad"), [(3, (0,)), (4, (2,)), (5, (1, 3))])
@pytest.mark.parametrize("kind", ["sign_flip", "random"])
def test_liars_lose_their_votes_and_replicas_stay_bit_equal(size, bad, kind):
    results = run_ranks(size, lambda t: Learner(t, liars(*bad, kind=kind)).learn(range(10 * EVERY)))
    honest = [rank for rank in range(size) if rank not in bad]
    for learner in results:
        assert learner.seats[-1] == honest
        assert learner.exchange.metrics() == {"voters": len(honest)}
        assert torch.equal(learner.parameters(), results[0].parameters())


def test_a_liar_does_less_harm_without_a_vote():
    def error(config):
        model = run_ranks(4, lambda t: Learner(t, config).learn(range(20 * EVERY)))[0].model
        x = torch.randn(500, 24, generator=torch.Generator().manual_seed(7))
        return (model(x) - x[:, :4] * x[:, 4:8] - x[:, :4]).square().mean().item()

    plain = liars(2).model_copy(update={"weights": None})
    assert error(liars(2)) < 0.5 * (error(LEARNED) + error(plain))


def test_honest_ranks_keep_their_votes_and_the_vote_is_the_plain_one():
    """Also with a quarter of the others' samples."""
    samples = [16, 16, 4, 16]

    def program(config):
        return run_ranks(4, lambda t: Learner(t, config, samples[t.rank]).learn(range(10 * EVERY)))

    learned = program(LEARNED)
    assert all(seats == [0, 1, 2, 3] for seats in learned[0].seats)
    plain = program(LEARNED.model_copy(update={"weights": None}))
    assert torch.equal(learned[0].parameters(), plain[0].parameters())


def test_a_vote_is_won_back():
    states = run_ranks(4, lambda t: Learner(t, liars(2)).learn(range(8 * EVERY)).exchange.rank_state_dict())

    def program(transport):
        learner = Learner(transport, LEARNED)
        learner.exchange.load_state_dict(copy.deepcopy(states))
        return learner.learn(range(8 * EVERY, 40 * EVERY)).seats

    seats = run_ranks(4, program)[0]
    assert seats[0] == [0, 1, 3] and seats[-1] == [0, 1, 2, 3]


def test_a_restart_goes_on_bit_for_bit():
    steps, half = 6 * EVERY, 3 * EVERY + 3
    straight = run_ranks(4, lambda t: Learner(t, liars(1)).learn(range(steps)))
    saved = run_ranks(4, lambda t: Learner(t, liars(1)).learn(range(half)))
    states = [copy.deepcopy(learner.exchange.rank_state_dict()) for learner in saved]

    def resumed(transport):
        learner = Learner(transport, liars(1))
        learner.model.load_state_dict(saved[transport.rank].model.state_dict())
        learner.exchange.load_state_dict(copy.deepcopy(states))
        return learner.learn(range(half, steps))

    for learner in run_ranks(4, resumed):
        assert torch.equal(learner.parameters(), straight[0].parameters())
        assert learner.seats == straight[0].seats[half:]


def test_other_ranks_begin_anew():
    states = run_ranks(4, lambda t: Learner(t, liars(1)).learn(range(4 * EVERY)).exchange.rank_state_dict())

    def program(transport):
        learner = Learner(transport, LEARNED)
        learner.exchange.load_state_dict(states)
        return learner.exchange.rank_state_dict()["reducer"]["agreement"]

    assert not run_ranks(3, program)[0].any()


def test_by_nodes_nobody_sees_all_ballots():
    with pytest.raises(ValidationError, match="by_nodes = false"):
        VoteConfig(weights="learned", by_nodes=True)
