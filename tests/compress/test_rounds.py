"""Compressors in rounds: several ranks in one process, their generators driven in step."""

import copy
import math
from itertools import zip_longest

import pytest
import torch
from torch import Tensor

from hpcopt.compress import (
    QSGD,
    Dense,
    Half,
    LinearRounds,
    PowerSGD,
    RandomK,
    RoundCompressor,
    SharedTernGrad,
    SharedTopK,
)
from hpcopt.compress.finite import MOST
from hpcopt.compress.residuals import Layout, layout_numel
from hpcopt.errors import NonFiniteError, UnsupportedError
from hpcopt.testing.values import every_kind, gaussian

LAYOUT: Layout = {"conv": (16, 8, 3, 3), "bias": (16,), "linear": (40, 30), "scalar": (), "empty": (0, 4)}
N = layout_numel(LAYOUT)


def drive(compressors: list[RoundCompressor], buckets: list[Tensor], layout: Layout, seed: int = 0) -> list[Tensor]:
    """All-reduce the buckets in place; return the buffers that rank 0 sent, after the agreement that begins each."""
    own = [rank * (0 if c.shared_seed else 1) + seed for rank, c in enumerate(compressors)]
    sent = []
    for step in zip_longest(*(c.rounds(b, layout, seed=s) for c, b, s in zip(compressors, buckets, own, strict=True))):
        buffers = [reduction.buffer for reduction in step]
        assert len({(r.op, r.buffer.dtype, r.buffer.shape) for r in step}) == 1
        sent.append(buffers[0].clone())
        match step[0].op:
            case "sum":
                total = torch.stack(buffers).sum(0, dtype=buffers[0].dtype)
            case "max":
                total = torch.stack(buffers).amax(0)
            case "broadcast":
                total = buffers[-1].clone()
        for buffer in buffers:
            buffer.copy_(total)
    assert all(torch.equal(bucket, buckets[0]) for bucket in buckets), "ranks disagree"
    assert sent[0].shape == (1,) and sent[0].dtype == torch.float64
    return sent[1:]


def owed_by(compressors: list[RoundCompressor]) -> Tensor:
    """What all of them keep for later, shape (N,), float64."""
    owed = torch.zeros(N).double()
    for compressor in compressors:
        state = compressor.state_dict()
        parts = [state.get(f"error/{n}", state.get(n, torch.zeros(shape))) for n, shape in LAYOUT.items()]
        owed += torch.cat([part.reshape(-1) for part in parts])
    return owed


def buckets(ranks: int, step: int = 0, n: int = N) -> list[Tensor]:
    return [gaussian(n, seed=100 * step + rank) for rank in range(ranks)]


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_dense_and_half_sum(ranks):
    for codec, tolerance in ((Dense(), 1e-6), (Half(), 2.0**-6)):
        data = buckets(ranks)
        total = torch.stack(data).sum(0)
        drive([LinearRounds(codec) for _ in range(ranks)], data, LAYOUT)
        assert (data[0] - total).abs().max() <= tolerance * torch.stack(buckets(ranks)).abs().sum(0).max()


def test_random_k_sums_at_places_that_all_know():
    data = buckets(3)
    total = torch.stack(data).sum(0)
    drive([LinearRounds(RandomK(fraction=0.1, scaled=False)) for _ in range(3)], data, LAYOUT, seed=5)
    sent = data[0] != 0
    assert sent.sum() == RandomK(fraction=0.1).k(N)
    assert torch.allclose(data[0][sent], total[sent])


def test_codecs_that_are_not_linear_are_refused():
    with pytest.raises(UnsupportedError, match="qsgd"):
        LinearRounds(QSGD())


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize(
    "make",
    [
        lambda: LinearRounds(RandomK(fraction=0.1, scaled=False), feedback=True),
        lambda: SharedTopK(fraction=0.1).build(),
        lambda: PowerSGD(rank=2).build(),
    ],
    ids=["random_k", "shared_topk", "powersgd"],
)
def test_what_is_not_sent_is_kept(make, ranks):
    """Over time and ranks: what came out and what all residuals hold is the sum of what went in."""
    compressors = [make() for _ in range(ranks)]
    came, out = torch.zeros(N).double(), torch.zeros(N).double()
    for step in range(6):
        data = buckets(ranks, step)
        came += torch.stack(data).double().sum(0)
        drive(compressors, data, LAYOUT, seed=step)
        out += data[0]
    assert (out + owed_by(compressors) - came).abs().max() <= 2e-5 * came.abs().max()


@pytest.mark.parametrize("ranks", [1, 3, 127])
def test_shared_terngrad_sums_are_exact_integers(ranks):
    data = buckets(ranks)
    kept = [b.clone() for b in data]
    sent = drive([SharedTernGrad() for _ in range(ranks)], data, LAYOUT)
    assert sent[1].dtype == torch.int8 and sent[1].numel() == N
    conv = torch.Size(LAYOUT["conv"]).numel()
    top = max(b[:conv].abs().max() for b in kept)
    levels = data[0][:conv] / top
    assert (levels - levels.round()).abs().max() < 1e-5 and levels.abs().max() <= ranks


def test_shared_terngrad_is_unbiased_with_its_variance():
    x = gaussian(50)
    layout = {"w": (50,)}
    draws = []
    for seed in range(3000):
        data = [x.clone(), x / 2]
        drive([SharedTernGrad(), SharedTernGrad()], data, layout, seed=10 * seed)
        draws.append(data[0].double())
    error = torch.stack(draws) - 1.5 * x.double()
    top, size = x.double().abs().max(), x.double().abs()
    variance = size * (top - size) + size / 2 * (top - size / 2)
    assert (error.mean(0).abs() <= 4.5 * (variance / 3000).sqrt() + 1e-6).all()
    assert error.square().sum(1).mean().item() == pytest.approx(variance.sum().item(), rel=0.05)
    assert SharedTernGrad().max_ranks == 127 and SharedTernGrad(sums="int16").max_ranks == 32767


def test_shared_topk_takes_the_places_of_one_rank():
    data = buckets(3)
    total, leader = torch.stack(data).sum(0), data[-1].clone()
    sent = drive([SharedTopK(fraction=0.05).build() for _ in range(3)], data, LAYOUT)
    places = leader.abs().topk(round(0.05 * N)).indices.sort().values
    assert torch.equal(torch.nonzero(data[0]).view(-1), places)
    assert torch.allclose(data[0][places], total[places])
    assert [buffer.numel() for buffer in sent] == [places.numel()] * 2


def test_powersgd_bytes_are_those_of_the_factors():
    sent = drive([PowerSGD(rank=2).build()], buckets(1), LAYOUT)
    dense = 16 + 1  # bias and scalar
    assert [buffer.numel() for buffer in sent] == [2 * (16 + 40) + dense, 2 * (72 + 30)]


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_powersgd_is_exact_for_a_mean_of_low_rank(ranks):
    layout = {"w": (30, 20)}
    left, right = gaussian(60, seed=1).view(30, 2), gaussian(40, seed=2).view(2, 20)
    noise = gaussian(600, seed=3)
    data = [
        (left @ right).view(-1) + noise * (1 if r == 0 else -1 if r == 1 else 0) * (ranks > 1) for r in range(ranks)
    ]
    total = torch.stack(data).sum(0)
    drive([PowerSGD(rank=2).build() for _ in range(ranks)], data, layout)
    assert torch.allclose(data[0], total, atol=2e-5 * float(total.abs().max()) * 10)


def test_powersgd_errors_never_grow_past_what_they_are_made_of():
    compressor, layout = PowerSGD(rank=1).build(), {"w": (30, 20)}
    error = torch.zeros(600)
    for step in range(5):
        x = gaussian(600, seed=step)
        combined = float((x + error).norm())
        drive([compressor], [x], layout)
        error = compressor.state_dict()["error/w"].reshape(-1).clone()
        assert float(error.norm()) <= combined * (1 + 1e-6)


def test_a_warm_start_converges_to_the_best_approximation():
    layout = {"w": (30, 20)}
    matrix = gaussian(600)
    s = torch.linalg.svdvals(matrix.view(30, 20))
    best = float(s[3:].norm())

    def misses(warm: bool) -> list[float]:
        compressor, found = PowerSGD(rank=3, warm_start=warm).build(), []
        for step in range(60):
            compressor.load_state_dict({k: t for k, t in compressor.state_dict().items() if k.startswith("right/")})
            x = matrix.clone()
            drive([compressor], [x], layout, seed=step)
            found.append(float((x - matrix).norm()))
        return found

    warm, cold = misses(True), misses(False)
    assert warm[-1] == pytest.approx(best, rel=1e-3)
    assert min(cold) > warm[-1]


def test_powersgd_resumes_from_its_state():
    first, layout = PowerSGD(rank=2).build(), {"w": (30, 20), "b": (5,)}
    for step in range(3):
        drive([first], [gaussian(605, seed=step)], layout)
    second = PowerSGD(rank=2).build()
    second.load_state_dict({k: t.clone() for k, t in first.state_dict().items()})
    one, other = gaussian(605, seed=9), gaussian(605, seed=9)
    drive([first], [one], layout, seed=3)
    drive([second], [other], layout, seed=4)
    assert torch.equal(one, other)


@pytest.mark.parametrize("largest", [MOST, 1e37, 1e30, 1e20, 1e-30, 1e-38, 1e-42])
@pytest.mark.parametrize(
    "make",
    [
        lambda: PowerSGD(rank=2).build(),
        lambda: PowerSGD(rank=2, warm_start=False).build(),
        lambda: SharedTopK(fraction=0.1).build(),
        lambda: LinearRounds(RandomK(fraction=0.2, scaled=False), feedback=True),
        SharedTernGrad,
    ],
    ids=["powersgd", "powersgd cold", "shared_topk", "random_k", "shared_terngrad"],
)
def test_finite_values_of_every_kind(make, largest):
    """They are carried, and what is not sent is kept; only values beyond 1e30 may be refused, by all ranks."""
    for one, other in zip(every_kind(N, largest, 1), every_kind(N, largest, 2), strict=True):
        ranks, out = [make(), make()], torch.zeros(N).double()
        inputs = [(one, other), (other, one / 2), (one, -other)]
        try:
            for step, pair in enumerate(inputs):
                data = [x.clone() for x in pair]
                drive(ranks, data, LAYOUT, seed=step)
                out += data[0]
        except NonFiniteError as refusal:
            assert largest > 1e30 and refusal.on_every_rank
            continue
        assert out.isfinite().all()
        assert all(tensor.isfinite().all() for rank in ranks for tensor in rank.state_dict().values())
        if isinstance(ranks[0], SharedTernGrad):
            continue
        came = sum(x.double() for pair in inputs for x in pair)
        top = max(float(x.abs().max()) for pair in inputs for x in pair)
        assert (out + owed_by(ranks) - came).abs().max() <= 2e-6 * top + 100 * 2.0**-149


@pytest.mark.parametrize("make", [lambda: PowerSGD().build(), SharedTernGrad, lambda: SharedTopK().build()])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_inf_and_nan_of_one_rank_become_nan_on_all_and_no_state(make, bad):
    ranks = [make(), make()]
    drive(ranks, buckets(2), LAYOUT)
    for place in (3, N - 1):
        states = [copy.deepcopy(rank.state_dict()) for rank in ranks]
        data = buckets(2, step=1)
        data[1][place] = bad
        with pytest.raises(NonFiniteError, match="cannot carry the Inf or NaN"):
            drive(ranks, data, LAYOUT)
        for rank, state in zip(ranks, states, strict=True):
            assert all(torch.equal(tensor, state[name]) for name, tensor in rank.state_dict().items())


@pytest.mark.parametrize(
    "make", [lambda: PowerSGD().build(), SharedTernGrad, lambda: SharedTopK().build(), lambda: LinearRounds(Half())]
)
def test_zeros_and_an_empty_bucket(make):
    for layout in (LAYOUT, {}, {"empty": (0, 3)}):
        data = [torch.zeros(layout_numel(layout)) for _ in range(2)]
        drive([make(), make()], data, layout)
        assert not data[0].any()
