"""An exchange of virtual ranks in a loop of one's own."""

import math

import pytest
import torch
from torch import nn

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.virtual import VirtualRanks
from hpcopt.comm.world import World
from hpcopt.compress import Bounded
from hpcopt.errors import NonFiniteError, UnsupportedError
from hpcopt.exchange import Exchange, ExchangeConfig, NativeConfig, RingConfig, VoteConfig

VIRTUAL = 5
SIZES = (700, 3, 0, 64)
CONFIGS = {
    "dense": NativeConfig(bucket_mb=0.001),
    "bounded": RingConfig(codec=Bounded(bound=1e-4)),
    "vote": VoteConfig(),
}


def model(dtype: torch.dtype = torch.float32) -> nn.ParameterList:
    return nn.ParameterList(nn.Parameter(torch.zeros(n, dtype=dtype)) for n in SIZES)


def gradient(virtual_rank: int, step: int, n: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * step + virtual_rank)
    return torch.randn(n, generator=generator, dtype=torch.float64)


class Loop:
    """On one rank; the gradients are given."""

    def __init__(self, transport, config: ExchangeConfig, *, mean: bool = False, dtype=torch.float32) -> None:
        self.world, self.ranks = World(transport), VirtualRanks(VIRTUAL, transport.rank, transport.size)
        self.model = model(dtype)
        self.exchange = Exchange(self.world, self.model, config, mean=mean, virtual=self.ranks)
        self.world.traffic.lap()

    def backward(self, virtual_rank: int, step: int, worst: float = 0.0) -> None:
        sum((p * (gradient(virtual_rank, step, len(p)) + worst).to(p.dtype)).sum() for p in self.model).backward()

    def step(self, step: int, worst: dict[int, float] | None = None) -> list[torch.Tensor]:
        held = self.ranks.held
        self.exchange.begin(backwards=len(held))
        for virtual_rank in held:
            self.backward(virtual_rank, step, (worst or {}).get(virtual_rank, 0.0))
            if virtual_rank != held[-1]:
                self.exchange.next_virtual_rank()
        self.exchange.finish()
        return [p.grad.clone() for p in self.model]


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_sums_and_means_are_those_of_virtual_ranks(name, mean):
    """With the bytes that are planned, at most."""

    def program(transport):
        loop = Loop(transport, CONFIGS[name], mean=mean)
        grads = [loop.step(step) for step in range(2)]
        return grads, loop.world.traffic.sent_bytes, 2 * loop.exchange.planned_bytes()

    results = [result for ranks in (1, 2, 3, 5) for result in run_ranks(ranks, program)]
    for step in range(2):
        for k, n in enumerate(SIZES):
            found = {bytes(grads[step][k].numpy()) for grads, _, _ in results}
            assert len(found) == 1
            exact = sum(gradient(virtual_rank, step, n) for virtual_rank in range(VIRTUAL))
            grad = results[0][0][step][k]
            if name == "vote":
                votes = sum((gradient(v, step, n) < 0).int() for v in range(VIRTUAL))
                assert torch.equal(grad, 1.0 - 2.0 * (votes > VIRTUAL / 2))
            else:
                exact = exact / VIRTUAL if mean else exact
                torch.testing.assert_close(grad.double(), exact, rtol=1e-5, atol=5e-3 if name == "bounded" else 1e-6)
    for _, sent_bytes, planned_bytes in results:
        assert sent_bytes == planned_bytes if name == "dense" else sent_bytes <= planned_bytes


def test_other_dtypes_take_the_tree_where_a_bound_is_given():
    results = [
        result
        for ranks in (1, 2, 5)
        for result in run_ranks(ranks, lambda t: Loop(t, CONFIGS["bounded"], dtype=torch.float64).step(0))
    ]
    for k, n in enumerate(SIZES):
        assert len({bytes(grads[k].numpy()) for grads in results}) == 1
        torch.testing.assert_close(results[0][k], sum(gradient(v, 0, n) for v in range(VIRTUAL)))


@pytest.mark.parametrize("virtual_rank", [0, 2, 4])
def test_what_one_virtual_rank_cannot_send_is_refused_on_all_ranks(virtual_rank):
    """And the next step is as if there had been none."""

    def program(transport):
        loop = Loop(transport, CONFIGS["bounded"])
        with pytest.raises(NonFiniteError, match="Inf or NaN"):
            loop.step(0, {virtual_rank: math.nan})
        return loop.step(1)

    expected = run_ranks(1, lambda t: Loop(t, CONFIGS["bounded"]).step(1))[0]
    for grads in run_ranks(2, program):
        assert all(map(torch.equal, grads, expected))


@pytest.mark.parametrize("name", CONFIGS)
def test_of_a_step_that_was_given_up_nothing_stays(name):
    def program(transport):
        loop = Loop(transport, CONFIGS[name])
        loop.exchange.begin(backwards=len(loop.ranks.held))
        loop.backward(loop.ranks.held[0], 7)
        loop.exchange.next_virtual_rank()
        return loop.step(1)

    expected = run_ranks(1, lambda t: Loop(t, CONFIGS[name]).step(1))[0]
    for grads in run_ranks(2, program):
        assert all(map(torch.equal, grads, expected))


def test_too_many_and_too_few_virtual_ranks_are_refused():
    loop = run_ranks(1, lambda t: Loop(t, RingConfig()))[0]
    loop.exchange.begin()
    with pytest.raises(UnsupportedError, match=r"gradients of 1 virtual ranks are there, and this rank holds 5"):
        loop.exchange.finish()
    for _ in range(VIRTUAL - 1):
        loop.exchange.next_virtual_rank()
    with pytest.raises(UnsupportedError, match="no further virtual rank"):
        loop.exchange.next_virtual_rank()
    loop.exchange.finish()
