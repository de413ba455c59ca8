"""PSQ and BHQ: bytes of the formula, codes of a plain numpy version, rows of the tensor, in exchanges and pipelines."""

import numpy as np
import pytest
import torch

from hpcopt import kernels
from hpcopt.comm import two_phase
from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.shards import grain
from hpcopt.comm.world import World, alone
from hpcopt.compress import BHQ, PSQ
from hpcopt.compress.bhq import WORST_SQUARES
from hpcopt.errors import PayloadError
from hpcopt.lowbit import GroupedReflection
from hpcopt.pipeline.link import UP, Link
from hpcopt.seeds import derive
from hpcopt.shapes.context import Context
from hpcopt.testing.values import gaussian
from tests.compress import oracle

SHAPES = [(1, 1), (2, 512), (3, 7), (40, 27), (5, 300)]


def skewed(rows: int, columns: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(4)
    sizes = torch.logspace(0, -6, rows)[torch.randperm(rows, generator=draw)]
    return torch.randn(rows, columns, generator=draw) * sizes[:, None]


def code_bytes(n: int, bits: int) -> int:
    blocks, rest = divmod(n, 512)
    return blocks * 64 * bits + sum(-(-rest * width // 8) for width in (8, 4, 2, 1) if bits & width)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
def test_bytes_are_the_formula(shape, bits):
    x = skewed(*shape).view(-1)
    for codec, a_row in ((PSQ(bits=bits), 4 + 4), (BHQ(bits=bits), 4 + 4 + 4 + 2)):
        payload = codec.for_tensor("w", shape).encode(x, seed=1)
        assert payload.numel() == shape[0] * a_row + code_bytes(x.numel(), bits)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", range(2, 9))
def test_codes_of_psq_are_the_oracles(shape, bits):
    """In fixed point, with the house's dice: floor(y + B / 2 + u), y in units of 2^(bits - 32)."""
    x, seed, top = skewed(*shape), 3 + (7 << 32), 2**bits - 1
    low, high = x.double().amin(1), x.double().amax(1)
    centre = ((low + high) / 2).float()[:, None]
    reach = torch.maximum(high.float() - centre[:, 0], centre[:, 0] - low.float()).numpy()
    units = np.float32(top * 2.0 ** (31 - bits))
    factor = np.divide(units, reach, out=np.zeros_like(reach), where=reach > 0)
    factor = np.where(reach * factor > units, np.nextafter(factor, np.float32(0)), factor)
    fixed = np.trunc((x - centre).numpy() * factor[:, None]).astype(np.int64).ravel()
    dice = oracle.random_bits(x.numel(), seed).astype(np.int64) >> bits
    codes = (fixed + (top << (31 - bits)) + dice) >> (32 - bits)
    payload = PSQ(bits=bits).for_tensor("w", shape).encode(x.view(-1), seed=seed).numpy()
    assert (payload[8 * shape[0] :] == oracle.pack(codes, bits)).all()
    steps = payload[4 * shape[0] : 8 * shape[0]].view(np.float32)
    assert steps == pytest.approx(((high - low) / top).numpy(), rel=1e-6)


@pytest.mark.parametrize("rows", [1, 2, 3, 17, 128])
def test_rows_are_grouped_as_by_the_reflection(rows):
    sizes = torch.logspace(-4, 2, rows)[torch.randperm(rows, generator=torch.Generator().manual_seed(0))]
    expected = GroupedReflection.for_ranges(sizes)
    leaders, scales = np.zeros(rows, np.int64), np.zeros(rows, np.float32)
    kernels.mixed.group(sizes.double().numpy(), leaders, scales)
    assert scales == pytest.approx(expected.scale.numpy(), rel=1e-6)
    same = expected.group[:, None] == expected.group[None]
    assert (torch.from_numpy(leaders[:, None] == leaders[None]) == same).all()
    u, beta_u = np.zeros(rows, np.float32), np.zeros(rows, np.float32)
    assert kernels.mixed.reflections(leaders, u, beta_u)
    assert u == pytest.approx(expected.u.numpy(), rel=1e-6) and beta_u == pytest.approx(
        (expected.beta * expected.u).numpy(), rel=1e-6
    )


def test_cube_roots_need_no_library():
    x = np.array([1e-30, 0.3, 1.0, 8.0, 7e5, 1e25])
    assert kernels.mixed.cube_roots(x) == pytest.approx(np.cbrt(x), rel=1e-14)


def test_large_rows_cost_small_ones_nothing():
    """On skewed rows of one scale each: BHQ errs least, then PSQ, and one step for all most."""
    x, draws = skewed(64, 40), 50

    def error(codec):
        flat = x.view(-1)
        return sum(
            float((codec.decode(codec.encode(flat, seed=s), flat.numel()) - flat).square().sum()) for s in range(draws)
        )

    one, by_rows, mixed = (error(codec) for codec in (PSQ(columns=x.numel()), PSQ(columns=40), BHQ(columns=40)))
    assert one > 5 * by_rows > 25 * mixed


def test_the_bound_of_bhq_holds_for_every_group():
    """Ranges of rows against the bound on the sum over mixed rows of range^2 times the column's norm."""
    draw = torch.Generator().manual_seed(0)
    for rows in (2, 3, 4, 5, 6, 9, 30):
        for spread in (0.0, 0.5, 3.0, 20.0):
            sizes = torch.exp(spread * torch.randn(rows, generator=draw)).double()
            s = GroupedReflection.for_ranges(sizes)
            matrix = s.apply(torch.eye(rows, dtype=torch.float64)).abs()
            total = ((matrix @ sizes).square() * s.column_norms()).sum()
            assert total <= WORST_SQUARES * sizes.square().sum()


def test_a_damaged_leader_is_refused():
    codec = BHQ(columns=10)
    payload = codec.encode(gaussian(40), seed=0)
    payload[12 * 4 + 1] = 1
    with pytest.raises(PayloadError, match="names a row that is none"):
        codec.decode(payload, 40)


@pytest.mark.parametrize("codec", [PSQ(bits=5), BHQ(bits=5)], ids=["psq", "bhq"])
def test_shards_of_two_phases_are_whole_rows(codec):
    """And the sum is that of the ranks, to the error of two encodings, on 1, 2 and 3 ranks."""
    codec = codec.for_tensor("w", (60, 27))
    assert grain(codec) % 27 == 0
    x = skewed(60, 27).view(-1)

    def program(t):
        mine = x * (t.rank + 1)
        return two_phase.all_reduce(t, mine, codec, sender_seed=t.rank, owner_seed=9)

    for ranks in (1, 2, 3):
        sums = run_ranks(ranks, program)
        assert all(torch.equal(found, sums[0]) for found in sums)
        error = (sums[0] - x * sum(range(1, ranks + 1))).abs().max()
        assert error <= 2 * ranks**2 / 31 * x.abs().max()


@pytest.mark.parametrize("codec", [PSQ(bits=4), BHQ(bits=4)], ids=["psq", "bhq"])
def test_rows_of_a_boundary_are_samples(codec):
    """What arrives is what the codec with the samples' columns gives by the link's seed, in its bytes."""
    x = skewed(6, 5 * 3).view(6, 5, 3)

    def program(t):
        link = Link(Context(world=World(t)), 1 - t.rank, codec, 8)
        if t.rank == 0:
            before = t.traffic.sent_bytes
            link.send(x, UP, 0)
            link.flush()
            return t.traffic.sent_bytes - before
        return link.receive(x.shape, torch.float32, UP)

    sent_bytes, came = run_ranks(2, program)
    own = codec.for_tensor("", (6, 15))
    assert own.columns == 15 and sent_bytes == own.max_bytes(90)
    seed = derive(Context(world=alone()).seed("link"), 0, 0, "up")
    assert torch.equal(came.view(-1), own.decode(own.encode(x.reshape(-1), seed=seed), 90))
