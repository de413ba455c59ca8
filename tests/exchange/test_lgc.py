"""LGC: phases, supports, what is owed, and an autoencoder of the same bits on all ranks (arXiv:2103.08870)."""

import pytest
import torch
from torch import nn

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World
from hpcopt.exchange import Exchange
from hpcopt.exchange.lgc.autoencoder import Autoencoder, code_numel
from hpcopt.exchange.lgc.reducer import LgcConfig
from hpcopt.testing import exchange as contract

INSTANCES = ["ring", "server"]
both = pytest.mark.parametrize("instance", INSTANCES)
SHAPES = ((30,), (64, 100), (80, 100), (40,), (10,))  # dense, coded, coded, top-k, top-k
N = sum(torch.Size(shape).numel() for shape in SHAPES)


def config(instance: str, **settings) -> LgcConfig:
    given = {"fraction": 0.02, "dense_steps": 2, "learning_steps": 25, "worst": 1.0} | settings
    return LgcConfig(instance=instance, bucket_mb=0.04, **given)


class Rank:
    """Gradients of which ranks share most, small noise beside it."""

    def __init__(self, transport, config: LgcConfig) -> None:
        self.world, self.rank = World(transport), transport.rank
        self.parameters = [nn.Parameter(torch.zeros(shape)) for shape in SHAPES]
        self.exchange = Exchange(self.world, [(f"p{i}", p) for i, p in enumerate(self.parameters)], config)
        self.world.traffic.lap()
        self.reducer = self.exchange._reducer

    def gradient(self, step: int) -> torch.Tensor:
        common = torch.randn(N, generator=torch.Generator().manual_seed(step)).pow(3)
        return common + 0.05 * torch.randn(N, generator=torch.Generator().manual_seed(1000 + 7 * step + self.rank))

    def step(self, step: int) -> torch.Tensor:
        """The sum, (N,)."""
        self.exchange.zero()
        for p, g in zip(self.parameters, self.gradient(step).split([p.numel() for p in self.parameters]), strict=True):
            p.grad.copy_(g.view(p.shape))
        self.exchange.finish()
        return torch.cat([p.grad.flatten() for p in self.parameters])

    def owed(self) -> torch.Tensor:
        state = self.exchange.rank_state_dict()["reducer"]["owed"]
        return torch.cat([state[f"p{i}"].flatten() for i in range(len(SHAPES))]).clone()


def long_run(ranks: int = 3, steps: int = 45, **settings):
    """Of each rank, step by step: the sum, what it owes, bytes sent, buckets that went as codes; and its end."""

    def program(transport):
        rank, seen = Rank(transport, config(**settings)), []
        for step in range(steps):
            out = rank.step(step)
            sent = rank.world.traffic.lap().sent_bytes
            seen.append((out, rank.owed(), sent, rank.exchange.metrics()))
        return seen, {name: t.clone() for name, t in rank.reducer._instance.autoencoder.tensors().items()}

    return run_ranks(ranks, program)


@pytest.fixture(scope="module", params=INSTANCES)
def run(request):
    return long_run(instance=request.param)


def test_sums_autoencoder_and_phases_are_the_same_on_all_ranks(run):
    for seen, weights in run:
        for mine, first in zip(seen, run[0][0], strict=True):
            assert torch.equal(mine[0], first[0]) and mine[3] == first[3]
        assert all(torch.equal(weights[name], tensor) for name, tensor in run[0][1].items())


def test_the_three_phases(run):
    """Exact sums; a fiftieth of the values at shared places; then codes, and fewer bytes."""
    seen = run[0][0]
    sums = [sum(Rank.gradient(rank_of(r), step) for r in range(3)) for step in range(2)]
    for step in range(2):
        torch.testing.assert_close(seen[step][0], sums[step], rtol=1e-5, atol=1e-5)
        assert seen[step][3]["coded_buckets"] == 0
    places = sum(round(0.02 * n) for n in (6400, 8000)) + 1 + 30  # top-k of 50 values, and what stays dense
    for out, _, _, _ in seen[2:]:
        assert 0 < int((out != 0).sum()) <= places
    assert [metrics["coded_buckets"] for _, _, _, metrics in seen[2:27]] == [0] * 25
    assert all(metrics["coded_buckets"] > 0 for _, _, _, metrics in seen[27:])
    bytes_of = [max(ranks[0][step][2] for ranks in run) for step in (1, 20, 40)]
    assert bytes_of[0] > 20 * bytes_of[1] and bytes_of[1] > bytes_of[2]


def rank_of(rank: int) -> Rank:
    bare = object.__new__(Rank)
    bare.rank = rank
    return bare


def test_the_first_parameter_stays_exact(run):
    for step in (0, 20, 40):
        expected = sum(Rank.gradient(rank_of(r), step)[:30] for r in range(3))
        torch.testing.assert_close(run[0][0][step][0][:30], expected, rtol=1e-5, atol=1e-5)


def test_a_rank_owes_what_its_decoded_part_lacks():
    """Step by step, for the server, whose sum is that of the ranks' parts: what came is what is owed and what went."""
    ranks = long_run(instance="server", steps=35)
    for step in range(1, 35):
        came = sum(Rank.gradient(rank_of(r), step) for r in range(3))
        change = sum(seen[step][1] - seen[step - 1][1] for seen, _ in ranks)
        torch.testing.assert_close(ranks[0][0][step][0] + change, came, rtol=0, atol=2e-4)


def test_codes_leave_little_more_owed_than_the_values_themselves(run):
    plain = long_run(instance="ring", worst=0)
    for (seen, _), (exact, _) in zip(run, plain, strict=True):
        assert float(seen[-1][1].norm()) < 1.25 * float(exact[-1][1].norm())


@both
def test_an_autoencoder_that_is_not_good_enough_carries_nothing(instance):
    """Then it is shared top-k, which loses nothing at its places."""
    for worst in (0.0, 1e-6):

        def program(transport, worst=worst):
            rank = Rank(transport, config(instance, worst=worst, learning_steps=0, dense_steps=0))
            came = sum(Rank.gradient(rank_of(r), 0) for r in range(transport.size))
            return rank.step(0), came, rank.owed(), rank.exchange.metrics()

        out, came, owed, metrics = run_ranks(3, program)[1]
        sent = out != 0
        torch.testing.assert_close(out[sent], came[sent], rtol=1e-5, atol=1e-5)
        assert not owed[sent].any() and metrics["coded_buckets"] == 0


def test_the_server_resumes_and_sees_not_finite_values():
    """What the contract asks of the other instance, in part."""
    server = LgcConfig(
        instance="server", fraction=0.1, dense_steps=1, learning_steps=2, worst=1.0, bucket_mb=contract.BUCKET_MB
    )
    contract.check_bytes(server, 3)
    contract.check_resume(server, 2)
    contract.check_resharding(server, 3, 2, steps=10)
    contract.check_resharding(server, 2, 3, steps=10)
    contract.check_not_finite(server, 2)


def test_an_autoencoder_learns_a_curve_and_says_what_it_is_told():
    torch.manual_seed(0)
    autoencoder = Autoencoder(2, seed=3)
    shape = torch.linspace(-1, 1, 100).pow(3) * 3
    for _ in range(150):
        decoded = autoencoder.decode(autoencoder.encode(shape), 100, decoder=1)
        loss = (decoded - shape).square().mean()
        autoencoder.learn(loss)
    assert float(loss.detach()) < 0.05 * float(shape.square().mean())
    assert autoencoder.encode(shape).numel() == code_numel(100) == 28
    known = torch.zeros(100)
    known[7] = 42.0
    assert autoencoder.decode(autoencoder.encode(shape), 100, known=known)[7] == 42.0


def test_decoders_of_new_ranks_begin_as_the_first():
    one, more = Autoencoder(1, seed=3), Autoencoder(3, seed=4)
    one.learn(one.decode(one.encode(torch.ones(40)), 40).square().sum())
    more.load(one.tensors())
    learned = list(one.decoders[0].parameters())
    assert len(more.decoders) == 3
    for decoder in more.decoders:
        assert all(torch.equal(p, q) for p, q in zip(decoder.parameters(), learned, strict=True))
    new = Autoencoder(1, seed=4).decoders[0].parameters()
    assert not all(torch.equal(p, q) for p, q in zip(new, learned, strict=True))
