"""Sampled targets: other draws for each seed, step, rank and micro-batch, and the same for the same."""

import copy

import pytest
import torch
from torch import Tensor, nn

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World, alone
from hpcopt.solvers.kaisa.preconditioner import Kaisa
from hpcopt.solvers.kaisa.targets import sampled_gradient

NET, X = nn.Linear(3, 4).double(), torch.zeros(50, 3, dtype=torch.float64)


def sums_of_gradients(kaisa: Kaisa, net: nn.Module, calls: int = 1) -> list[Tensor]:
    """G of each call of a step."""
    found = []
    for _ in range(calls):
        before = kaisa._recorder._sums[kaisa.layers.found[0]].g.clone() if found else 0
        kaisa.sample(net(X), "categorical")
        found.append(kaisa._recorder._sums[kaisa.layers.found[0]].g - before)
    net(X).sum().backward()
    kaisa.step()
    return found


def draws(seed: int, steps: int = 2, world: World | None = None) -> list[Tensor]:
    net = copy.deepcopy(NET)
    kaisa = Kaisa(net, world or alone(), fisher="sampled", factor_every=1, seed=seed)
    torch.manual_seed(seed)  # torch's own stream has no part in it
    return [g for _ in range(steps) for g in sums_of_gradients(kaisa, net, calls=2)]


def test_each_seed_step_rank_and_micro_batch_draws_for_itself():
    of_ranks = run_ranks(2, lambda t: draws(0, world=World(t)))
    all_of_them = [g for own in (*of_ranks, draws(1)) for g in own]
    for i, one in enumerate(all_of_them):
        assert not any(torch.equal(one, other) for other in all_of_them[:i])


def test_the_same_seed_draws_the_same():
    for one, other in zip(draws(3), draws(3), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("settings", [{"method": "low_rank", "rank": 2}, {"refresh_tolerance": 1e-9}], ids=str)
def test_a_seed_decides_where_iterations_and_probes_start(settings):
    def state(seed: int) -> dict:
        torch.manual_seed(0)
        net = nn.Linear(9, 9).double()
        kaisa = Kaisa(net, alone(), seed=seed, **settings)
        net(torch.randn(20, 9, dtype=torch.float64)).square().sum(1).mean().backward()
        kaisa.step()
        return kaisa.rank_state_dict()[""]

    name = "inverse" if "method" in settings else "sketch"
    assert torch.equal(state(0)[name], state(0)[name])
    assert not torch.allclose(state(0)[name], state(1)[name], rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_category_is_drawn_as_often_as_it_is_likely(dtype):
    """Also for logits in half precision; what is impossible is never drawn."""
    p = torch.tensor([0.0, 0.5, 0.0, 0.375, 0.125, 0.0])
    logits = p.log().to(dtype).expand(20000, 2, 6)
    gradient = sampled_gradient(logits, "categorical", torch.Generator().manual_seed(0))
    assert gradient.dtype == dtype
    counts = (gradient < 0).double().mean((0, 1))
    assert counts.sum() == pytest.approx(1) and not counts[p == 0].any()
    torch.testing.assert_close(counts, p.double(), rtol=0, atol=0.01)


def test_many_unlikely_categories_are_all_drawn_in_half_precision():
    """A thousand equal ones: their sum in bfloat16 would stop growing at a quarter."""
    gradient = sampled_gradient(torch.zeros(20000, 1000, dtype=torch.bfloat16), "categorical", torch.Generator())
    assert ((gradient < 0).any(0)).all()
