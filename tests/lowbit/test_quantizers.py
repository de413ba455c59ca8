"""Quantizers keep the mean; their variance is the exact formula's, in the order and below the bounds of the paper."""

import itertools

import pytest
import torch

from hpcopt.lowbit.quantizers import grid, quantized, rounded

KINDS = ("ptq", "psq", "bhq")
DRAWS = 200


def skewed(rows=24, columns=10) -> torch.Tensor:
    """Few rows are large, as gradients of samples are late in training."""
    draw = torch.Generator().manual_seed(4)
    return torch.randn(rows, columns, generator=draw) * torch.logspace(0, -4, rows)[:, None]


def drawn(g: torch.Tensor, kind: str, bits: int, seed: int = 0) -> torch.Tensor:
    """Many draws, (DRAWS, N, D)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([quantized(g, kind, bits, generator) for _ in range(DRAWS)]).double()


def ranges(g: torch.Tensor) -> torch.Tensor:
    return (g.amax(1) - g.amin(1)).double()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [1, 2, 5])
def test_the_mean_is_kept_and_the_variance_is_the_formula(kind, bits):
    g = skewed()
    found, expected = drawn(g, kind, bits), float(grid(g, kind, bits).variance(g))
    assert float((found - g).square().sum((1, 2)).mean()) == pytest.approx(expected, rel=0.15)
    bias = float((found.mean(0) - g).norm()) / (expected / DRAWS) ** 0.5
    assert 0.7 < bias < 1.3, "what is left of the bias is the mean's own deviation"


def test_variances_are_ordered_and_below_their_bounds():
    g = skewed()
    ptq, psq, bhq = (float(grid(g, kind, 4).variance(g)) for kind in KINDS)
    assert ptq > 5 * psq > 25 * bhq
    rows, columns, top = *g.shape, 15
    assert ptq <= rows * columns / (4 * top**2) * float(g.max() - g.min()) ** 2
    assert psq <= columns / (4 * top**2) * float(ranges(g).square().sum())
    mixing = grid(g, "bhq", 4).reflection
    mixed = ranges(mixing.apply(g))
    assert bhq <= columns / (4 * top**2) * float((mixed.square() * mixing.column_norms()).sum()) * (1 + 1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_bit_more_is_a_quarter_of_the_variance(kind):
    g = skewed(64, 64).sign() + torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    found = [float(grid(g, kind, bits).variance(g)) for bits in range(3, 9)]
    for before, after in itertools.pairwise(found):
        assert 3.2 < before / after < 5.8, "4 in the limit, (31 / 15)^2 = 4.3 from 4 to 5 bits"


def test_rows_alike_have_variances_alike():
    g = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    found = [float(grid(g, kind, 4).variance(g)) for kind in KINDS]
    assert max(found) < 4 * min(found)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [2, 3, 8])
def test_integers_alone_bring_the_matrix_back(kind, bits):
    """Of what goes through no codec, which stores them anyway."""
    g = skewed().double()
    on = grid(g, kind, bits)
    integers = rounded(on.exact(g), torch.Generator().manual_seed(7))
    assert torch.equal(integers, integers.round()) and integers.min() >= 0 and integers.max() <= 2**bits - 1
    stored = integers.to(torch.uint8)
    assert torch.equal(on.values(stored), quantized(g, kind, bits, torch.Generator().manual_seed(7)))


@pytest.mark.parametrize("bits", [2, 5])
def test_bhq_is_psq_between_a_matrix_and_its_inverse(bits):
    g = skewed().double()
    mixing = grid(g, "bhq", bits).reflection
    s = mixing.apply(torch.eye(len(g), dtype=torch.float64))
    dense = torch.linalg.inv(s) @ quantized(s @ g, "psq", bits, torch.Generator().manual_seed(1))
    ours = quantized(g, "bhq", bits, torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours, dense)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "g",
    [
        torch.zeros(5, 4),
        torch.full((3, 2), -2.5),
        torch.tensor([[1.0, 2.0, 4.0]]),
        torch.tensor([[0.0, 0.0], [1.0, 3.0]]),
        torch.tensor([[7.0], [1.0]]),
        torch.zeros(0, 4),
        torch.zeros(4, 0),
        1e-30 * torch.ones(3, 3).cumsum(1),
        1e30 * torch.ones(3, 3).cumsum(1),
    ],
    ids=["zeros", "constant", "one row", "a row of zeros", "a column", "no rows", "no columns", "tiny", "huge"],
)
def test_matrices_at_the_edge(kind, g):
    found = quantized(g, kind, 8)
    assert found.shape == g.shape
    reach = float(g.max() - g.min()) if g.numel() else 0.0
    tolerance = reach / 255 * 2.5 + 1e-6 * float(g.abs().max()) if g.numel() else 0.0
    assert not g.numel() or float((found - g).abs().max()) <= tolerance


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_numbers_that_are_none_stay_seen(kind, bad):
    g = skewed()
    g[3, 2] = bad
    assert not quantized(g, kind, 4).isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_scale_of_a_gradient_does_not_matter(kind):
    g = skewed()
    one, other = (quantized(g * 2.0**e, kind, 4, torch.Generator().manual_seed(2)) for e in (0, -60))
    assert torch.equal(one * 2.0**-60, other)
