"""Truncated inverses against dense ones."""

import pytest
import torch
from torch import nn

from hpcopt.solvers.kaisa import symmetric
from hpcopt.solvers.kaisa.factors import Failures, Work, factored_dampings
from hpcopt.solvers.kaisa.inverse import Cholesky
from hpcopt.solvers.kaisa.layers.layer import Layer, Options
from hpcopt.solvers.kaisa.low_rank import LowRank

DAMPING, RANK = 0.3, 4


def factor(matrices: int, eigenvalues: torch.Tensor) -> torch.Tensor:
    """Dense matrices with these eigenvalues, in any basis; shape (matrices, size, size)."""
    q = torch.linalg.qr(torch.randn(matrices, len(eigenvalues), len(eigenvalues), dtype=torch.float64)).Q
    return (q * eigenvalues) @ q.transpose(1, 2)


def packed(dense: torch.Tensor) -> torch.Tensor:
    return symmetric.pack(dense, dense.new_empty(len(dense), symmetric.packed_length(dense.shape[1])))


def cut(dense: torch.Tensor, damping: float, rank: int) -> torch.Tensor:
    """The inverse of a damped matrix whose eigenvalues but the first ``rank`` are replaced by their mean."""
    d, q = torch.linalg.eigh(dense)
    d[:, :-rank] = d[:, :-rank].mean(1, keepdim=True)
    return (q / (d + damping).unsqueeze(1)) @ q.transpose(1, 2)


def example(options: Options, decay: float = 2.0):
    """A layer with 30 inputs, a bias and 20 outputs, its two factors, and a gradient."""
    torch.manual_seed(0)
    layer = Layer("linear", nn.Linear(30, 20).double(), options)
    sizes = (torch.arange(1, shape.size + 1, dtype=torch.float64) for shape in (layer.a, layer.g))
    a, g = (factor(s.matrices, n**-decay) for s, n in zip((layer.a, layer.g), sizes, strict=True))
    return layer, a, g, torch.randn(1, 20, 31, dtype=torch.float64)


def solve(layer: Layer, method, a, g, w, refreshes: int):
    kept = torch.zeros(method.numel(layer), dtype=torch.float64)
    for _ in range(refreshes):
        method.invert([Work(layer, packed(a), packed(g), DAMPING, kept)], Failures())
    return method.apply(layer, kept, w, DAMPING)


def test_against_the_leading_eigenvectors():
    layer, a, g, w = example(Options())
    ((damping_a, damping_g),) = factored_dampings([Work(layer, packed(a), packed(g), DAMPING, w)])
    expected = cut(g, damping_g, RANK) @ w @ cut(a, damping_a, RANK)
    torch.testing.assert_close(solve(layer, LowRank(RANK), a, g, w, refreshes=40), expected, rtol=1e-6, atol=1e-9)


def test_blocks_are_cut_one_by_one():
    layer, a, g, w = example(Options(max_size=15, large="blocked"))
    assert (layer.a.blocks, layer.g.blocks) == (31, 2)  # 31 is prime
    ((damping_a, damping_g),) = factored_dampings([Work(layer, packed(a), packed(g), DAMPING, w)])
    expected = torch.block_diag(*cut(g, damping_g, RANK)) @ w / (a[:, 0, 0] + damping_a)
    torch.testing.assert_close(solve(layer, LowRank(RANK), a, g, w, refreshes=40), expected, rtol=1e-6, atol=1e-9)


def test_exact_where_the_rest_is_a_multiple_of_the_identity():
    layer, _, _, w = example(Options())
    a, g = (factor(1, torch.tensor([9.0, 7.0, 5.0, 3.0] + [0.01] * (n - 4), dtype=torch.float64)) for n in (31, 20))
    expected = solve(layer, Cholesky(), a, g, w, refreshes=1)
    torch.testing.assert_close(solve(layer, LowRank(RANK), a, g, w, refreshes=3), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("rank, exact", [(16, True), (10, False)])
def test_small_factors_are_inverted_whole(rank, exact):
    layer, a, g, w = example(Options())
    expected = solve(layer, Cholesky(), a, g, w, refreshes=1)
    found = solve(layer, LowRank(rank), a, g, w, refreshes=1)
    assert torch.equal(found, expected) == exact
    torch.testing.assert_close(found, expected, rtol=0.0, atol=0.02 * float(expected.abs().max()))


def test_keeps_less_and_is_planned_cheaper():
    layer = Layer("linear", nn.Linear(1000, 1000), Options())
    assert LowRank(32).numel(layer) < Cholesky().numel(layer) / 10
    assert LowRank(32).products(1000) == 64 < Cholesky().products(1000)
