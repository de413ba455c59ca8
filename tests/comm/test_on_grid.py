"""Sums on a grid are within their bound and have the same bits whoever adds what in which order; numpy is the
oracle.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcopt import kernels
from hpcopt.comm import on_grid
from hpcopt.comm.loopback import run_ranks
from hpcopt.compress import Bounded
from hpcopt.compress.bounded import Grid
from hpcopt.compress.finite import MOST
from hpcopt.errors import NonFiniteError, PayloadError
from hpcopt.testing.values import every_kind, gaussian


def summed(parts: list[torch.Tensor], codec: Bounded) -> torch.Tensor:
    """What all ranks have afterwards; they must agree."""
    largest = max((float(x.abs().max()) for x in parts if x.numel()), default=0.0)
    grid = codec.grid(largest, len(parts))
    ranks = run_ranks(len(parts), lambda t: on_grid.all_reduce(t, parts[t.rank].clone(), grid))
    assert all(torch.equal(x.view(torch.int32), ranks[0].view(torch.int32)) for x in ranks), "ranks differ"
    return ranks[0]


def bound_on_the_sum(parts: list[torch.Tensor], codec: Bounded) -> float:
    largest = max((float(x.abs().max()) for x in parts if x.numel()), default=0.0)
    return codec.bound if codec.of == "sum" else codec.bound * len(parts) * largest


@pytest.mark.parametrize("size", [2, 3, 4, 7])
@pytest.mark.parametrize("n", [0, 1, 63, 65, 5000])
@pytest.mark.parametrize(
    "codec", [Bounded(), Bounded(bound=3e-7), Bounded(bound=1), Bounded(bound=1e-3, of="sum")], ids=repr
)
def test_a_sum_is_the_integers_sum_and_within_the_bound(size, n, codec):
    parts = [gaussian(n, seed=rank) for rank in range(size)]
    came = summed(parts, codec)
    exact = sum((x.double() for x in parts), torch.zeros(n).double())
    assert ((came.double() - exact).abs() <= bound_on_the_sum(parts, codec)).all()
    if n:
        step = codec.grid(max(float(x.abs().max()) for x in parts), size).step
        integers = sum(np.rint(x.double().numpy() * (1 / step)) for x in parts)
        assert (came.numpy() == (integers * step).astype(np.float32)).all()


@settings(max_examples=25, deadline=None)
@given(
    size=st.integers(2, 5),
    n=st.integers(1, 200),
    bound=st.floats(3e-7, 1.0),
    scale=st.integers(-149, 115),
    seed=st.integers(0, 2**31),
)
def test_the_bound_holds_for_any_scale(size, n, bound, scale, seed):
    random = np.random.default_rng(seed)
    parts = [np.ldexp(random.standard_cauchy(n).clip(-100, 100), scale).astype(np.float32) for _ in range(size)]
    exact = sum(x.astype(np.float64) for x in parts)
    came = summed([torch.from_numpy(x) for x in parts], Bounded(bound=bound)).numpy()
    largest = max(np.abs(x).max() for x in parts)
    assert (np.abs(came - exact) <= bound * size * max(np.float64(largest), 2.0**-100)).all()


@pytest.mark.parametrize("size", [2, 3])
def test_every_kind_of_value_is_carried_up_to_the_largest_sum(size):
    codec = Bounded()
    cases = every_kind(700, MOST / size / 1.01)
    for index, x in enumerate(cases):
        parts = [x, *cases[index - 1 : index - size : -1]]
        exact = sum((part.double() for part in parts), torch.zeros(700).double())
        bound = max(bound_on_the_sum(parts, codec), size * codec.bound * 2.0**-100)
        assert ((summed(parts, codec).double() - exact).abs() <= bound).all()


def test_bits_depend_on_no_order_and_not_on_ranks_without_values():
    parts = [gaussian(1000, seed=rank) for rank in range(5)]
    codec = Bounded()
    expected = summed(parts, codec)
    for order in ([4, 2, 0, 3, 1], [1, 0, 2, 4, 3]):
        assert torch.equal(summed([parts[rank] for rank in order], codec), expected)
    assert torch.equal(summed([*parts, torch.zeros(1000), torch.zeros(1000)], codec), expected)


def test_bits_are_those_of_a_sum_that_goes_round_a_ring():
    """Any other way of adding the integers gives the same."""
    parts = [gaussian(333, seed=rank) for rank in range(4)]
    grid = Bounded().grid(max(float(x.abs().max()) for x in parts), 4)
    total = torch.zeros(333, dtype=torch.int64)
    for x in parts[2:] + parts[:2]:
        total += (x.double() * (1 / grid.step)).round().long()
    assert torch.equal(summed(parts, Bounded()), (total.double() * grid.step).float())


def test_what_float32_cannot_hold_is_refused_by_name():
    for codec, largest, words in (
        (Bounded(bound=1e-6, of="sum"), 1e3, "wider bound"),
        (Bounded(bound=3e-7), 1e38, "leave the range"),
    ):
        with pytest.raises(NonFiniteError, match=words) as refusal:
            codec.grid(largest, 7)
        assert "'bounded'" in str(refusal.value) and refusal.value.on_every_rank
    with pytest.raises(ValueError, match="between"):
        Bounded(bound=1e-8)


def test_a_block_of_zeros_costs_a_byte_and_others_their_own_bits():
    x = np.zeros(64 * 32, np.float32)
    x[64 * 7] = 100.0
    payload = np.zeros(10_000, np.uint8)
    used = kernels.grid.encode(x, 1.0, payload)
    assert used == 32 + 256  # eight bits in each of 64 streams: one word each
    assert payload[:32].tolist() == [0] * 7 + [8] + [0] * 24
    assert payload[32:36].view(np.uint32)[0] == 200


@pytest.mark.parametrize("magnitude", [0, 1, 2, 3, 200, 2**20, 2**30 - 1])
def test_the_payload_is_the_oracles(magnitude):
    """Width by width: streams of bits, signs last."""
    random = np.random.default_rng(magnitude)
    integers = random.integers(-magnitude, magnitude + 1, 64 * 9).astype(np.int64)
    integers[64:192] //= 50
    signed = np.where(integers < 0, -2 * integers - 1, 2 * integers).reshape(-1, 64)
    widths = [int(row.max()).bit_length() for row in signed]
    streams = [0] * 64
    for lane in range(64):
        at = 0
        for row, width in zip(signed[:, lane], widths, strict=True):
            streams[lane] |= int(row) << at
            at += width
    words = [stream >> 32 * k & 0xFFFFFFFF for k in range(-(-sum(widths) // 32)) for stream in streams]
    payload = np.full(64 * 9 * 4 + 300, 0xA5, np.uint8)[: 64 * 9 * 4 + 296]
    used = kernels.grid.pack(integers.astype(np.int32), 64 * 9, payload)
    assert payload[:16].tolist() == widths + [0] * 7
    assert payload[16:used].view(np.uint32).tolist() == words
    assert used <= on_grid.most_bytes(64 * 9, max(widths))


def test_a_payload_of_something_else_is_refused():
    def program(transport):
        if transport.rank == 0:
            for _ in range(2):
                transport.send(torch.full((40,), 33, dtype=torch.uint8), 1)
        on_grid.all_reduce(transport, torch.ones(640), Grid(1.0, 2, 3))

    with pytest.raises(PayloadError, match="320 values"):
        run_ranks(2, program)
