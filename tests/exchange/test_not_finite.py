"""Inf and NaN of one rank: all ranks see them in that step, and none in the next; what is kept between steps does not
change. And parameters of one name, whose error feedback would mix.
"""

import copy
import math
from contextlib import suppress

import pytest
import torch
from torch import nn

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World, alone
from hpcopt.compress import QSGD, Natural, PowerSGD, RandomK, SharedTernGrad, SharedTopK, TopK
from hpcopt.errors import NonFiniteError, UnsupportedError
from hpcopt.exchange import AutoConfig, Exchange, NativeConfig, RingConfig, TwoPhaseConfig, VoteConfig
from hpcopt.testing.codec import label as codec_label
from tests.comm.test_calibration import on_hosts
from tests.compress.properties import CODECS

N, STEPS = 1500, 7
BAD = {1: math.nan, 3: math.inf, 5: -math.inf}  # at these steps
SUMS = [
    RingConfig(),
    NativeConfig(),
    *(RingConfig(codec=codec) for codec in CODECS if codec.name == "half"),
    RingConfig(codec=RandomK(fraction=0.2)),
    RingConfig(codec=RandomK(fraction=0.2, scaled=False)),
    RingConfig(codec=PowerSGD(rank=2)),
    RingConfig(codec=PowerSGD(rank=2, warm_start=False)),
    RingConfig(codec=SharedTernGrad()),
    RingConfig(codec=SharedTopK(fraction=0.1)),
    *(TwoPhaseConfig(codec=codec, feedback=f) for codec in CODECS for f in ("error_feedback", "none")),
    TwoPhaseConfig(codec=TopK(fraction=0.1), by_nodes=True),
    TwoPhaseConfig(by_nodes=True),
    AutoConfig(codec=TopK(fraction=0.1), calibration_s=0.02),
]


def label(config) -> str:
    codec = f"-{codec_label(config.codec)}" if hasattr(config, "codec") else ""
    return f"{config.name}{codec}-{getattr(config, 'feedback', '')}-{getattr(config, 'by_nodes', '')}"


def gradient(step: int, rank: int) -> torch.Tensor:
    return torch.randn(N, generator=torch.Generator().manual_seed(10 * step + rank))


def matrix() -> nn.Parameter:
    return nn.Parameter(torch.zeros(50, 30))


def run(size: int, config, bad_rank: int = 1):
    """For each rank and step: the gradient that came out, and the state that is kept before and after the step."""

    def program(transport):
        p, world = matrix(), on_hosts(transport, ["a", "a", "b", "b"][:size])
        exchange = Exchange(world, [("p", p)], config)
        seen = []
        for step in range(STEPS):
            g = gradient(step, transport.rank)
            if step in BAD and transport.rank == bad_rank:
                g[700] = BAD[step]
            before = copy.deepcopy(exchange.rank_state_dict()["reducer"])
            exchange.zero()
            with suppress(NonFiniteError):  # which codecs that cannot carry it raise, on all ranks
                (p.view(-1) * g).sum().backward()
                exchange.finish()
            seen.append((p.grad.reshape(-1).clone(), before, copy.deepcopy(exchange.rank_state_dict()["reducer"])))
        return seen

    return run_ranks(size, program)


def same(one, other) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def tensors(state) -> list[torch.Tensor]:
    if isinstance(state, dict):
        return [t for part in state.values() for t in tensors(part)]
    return [state] if isinstance(state, torch.Tensor) else []


@pytest.mark.parametrize("config", SUMS, ids=label)
def test_all_ranks_see_it_in_that_step_and_none_in_the_next(config):
    ranks = run(3, config)
    for step in range(STEPS):
        for gradient, before, after in (rank[step] for rank in ranks):
            assert gradient.isfinite().all() == (step not in BAD)
            assert all(t.isfinite().all() for t in tensors(after))
            assert step not in BAD or same(before, after), "the state changed"


@pytest.mark.parametrize("bad_rank", [0, 1])
def test_on_one_and_on_two_ranks(bad_rank):
    for size in range(bad_rank + 1, 3):
        for config in (TwoPhaseConfig(codec=TopK()), RingConfig(codec=SharedTopK())):
            for rank in run(size, config, bad_rank):
                assert [out.isfinite().all().item() for out, _, _ in rank] == [step not in BAD for step in range(STEPS)]


def test_the_next_steps_are_those_of_a_run_without_that_step():
    config, bad_step = TwoPhaseConfig(codec=TopK(fraction=0.05)), 2

    def program(transport, skip):
        p, world = matrix(), World(transport)
        exchange = Exchange(world, [("p", p)], config)
        for step in range(STEPS):
            if step == bad_step and skip:
                state = exchange.rank_state_dict()
                exchange.load_state_dict([{**copy.deepcopy(state), "step": step + 1}] * transport.size)
                continue
            g = gradient(step, transport.rank)
            if step == bad_step:
                g[:] = math.inf if transport.rank == 1 else g
            exchange.zero()
            with suppress(NonFiniteError):
                (p.view(-1) * g).sum().backward()
                exchange.finish()
        return p.grad.clone()

    left_out, gone_through = (run_ranks(3, lambda t, s=skip: program(t, s)) for skip in (True, False))
    assert all(torch.equal(a, b) for a, b in zip(left_out, gone_through, strict=True))


@pytest.mark.parametrize("codec", [TopK(fraction=0.05), QSGD(norm="l2")], ids=codec_label)
def test_the_bound_on_what_is_owed_holds_and_is_renewed(codec):
    """It grows by the gain at each step, at least 4 times: beyond float32 in 64 steps, were it not looked at again."""
    config = TwoPhaseConfig(codec=codec, feedback="error_feedback")

    def program(transport):
        p = matrix()
        exchange = Exchange(World(transport), [("p", p)], config)
        owed = []
        for step in range(80):
            exchange.zero()
            (p.view(-1) * gradient(step, transport.rank) / 100).sum().backward()
            exchange.finish()
            kept = exchange.rank_state_dict()["reducer"]
            held = [float(kept[place]["p"].abs().max()) for place in ("sender", "owner")]
            owed.append((*held, exchange._reducer._owed_bounds[0]))
        return owed

    for ranks in zip(*run_ranks(3, program), strict=True):
        senders, owners, bounds = zip(*ranks, strict=True)
        assert sum(senders) + max(owners) <= bounds[0] and len(set(bounds)) == 1


@pytest.mark.parametrize("config", [VoteConfig(momentum=0.9), VoteConfig(), VoteConfig(momentum=0.9, by_nodes=True)])
def test_a_vote_outvotes_it_and_no_momentum_keeps_it(config):
    """A minority's NaN cannot be told from a lie, which must not stop the others."""
    ranks = run(3, config)
    for step in range(STEPS):
        for rank, (gradient, before, after) in enumerate(rank[step] for rank in ranks):
            assert (gradient.abs() == 1).all()
            assert all(t.isfinite().all() for t in tensors(after))
            if step in BAD and config.momentum:
                assert same(before["momentum"], after["momentum"]) == (rank == 1)


@pytest.mark.parametrize(
    "config", [TwoPhaseConfig(codec=Natural()), RingConfig(codec=SharedTopK(fraction=1)), RingConfig(codec=PowerSGD())]
)
def test_what_would_leave_the_range_is_refused_by_name_on_all_ranks(config):
    refused = []

    def program(transport):
        p = matrix()
        exchange = Exchange(World(transport), [("p", p)], config)
        exchange.zero()
        (p * (2e38 if transport.rank else 1.0)).sum().backward()
        try:
            exchange.finish()
        except NonFiniteError as error:
            refused.append((config.codec.name in str(error), error.on_every_rank))

    run_ranks(3, program)
    assert refused == [(True, True)] * 3


def test_parameters_of_one_name_are_refused():
    for config in (RingConfig(), TwoPhaseConfig(bucket_mb=1e-6)):
        with pytest.raises(UnsupportedError, match="share the name 'weight'"):
            Exchange(alone(), [("weight", matrix()), ("bias", matrix()), ("weight", matrix())], config)


def test_equal_names_on_one_rank_alone_end_all_ranks():
    def program(transport):
        names = ("a", "a") if transport.rank == 1 else ("a", "b")
        with pytest.raises(Exception, match="share the name 'a'"):
            Exchange(World(transport), [(name, matrix()) for name in names], RingConfig())

    run_ranks(3, program)
