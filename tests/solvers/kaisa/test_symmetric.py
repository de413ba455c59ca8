"""Packed symmetric matrices in single precision, by either kernel of products, against dense double precision."""

import pytest
import torch

from hpcopt.solvers.kaisa import products, symmetric
from hpcopt.solvers.kaisa.layers import autocorrelation, norm
from hpcopt.solvers.kaisa.products import narrow_is_quick, times_transposed


def assert_near(found, expected, tolerance=1e-5):
    assert (found.double() - expected).norm() <= tolerance * expected.norm()


@pytest.fixture(params=["mm", "oneDNN"])
def kernel(request, monkeypatch):
    """Either is the quicker one on some processor."""
    onednn = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if request.param == "oneDNN" and onednn is None:
        pytest.skip("torch has no oneDNN")
    monkeypatch.setattr(products, "_linear", onednn if request.param == "oneDNN" else None)


@pytest.mark.parametrize("n, m, k", [(1, 1, 1), (3, 300, 200), (257, 129, 300), (0, 5, 7)])
def test_products_are_single_precision_whatever_the_layout(n, m, k, kernel):
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(n, k, generator=generator), torch.randn(k, m, generator=generator)
    expected = a.double() @ b.double()
    for left in (a, a.T.contiguous().T, torch.cat([a, a], 1)[:, :k]):
        for right in (b.T, b.T.contiguous()):
            assert_near(times_transposed(left, right), expected)
            wide = torch.zeros(n, m + 1)
            assert_near(times_transposed(left, right, wide[:, :m]), expected)
            assert_near(wide[:, :m], expected)


@pytest.mark.parametrize("n, k", [(5, 9), (256, 300), (300, 64), (700, 40)])
def test_symmetric_products_are_whole(n, k, kernel):
    a = torch.randn(n, k, generator=torch.Generator().manual_seed(0))
    exact = a.double() @ a.double().T
    found = symmetric.product(a, a)
    assert_near(found, exact)
    assert_near(symmetric.product(found @ found, found), exact @ exact @ exact)


@pytest.mark.parametrize("size", [2, 31, 33, 144, 257, 300])
@pytest.mark.parametrize("ones", [False, True])
@pytest.mark.parametrize("blocks", [1, 3])
def test_gram_matrices_are_whole_symmetric_and_multiply(size, ones, blocks):
    generator = torch.Generator().manual_seed(size)
    rows = torch.randn(blocks, 400, size - ones, generator=generator)
    packed = torch.zeros(blocks, symmetric.packed_length(size))
    for part in rows.split(150, 1):
        symmetric.add_gram(packed, part, ones)
    full = torch.cat([rows, torch.ones(blocks, 400, 1)], 2).double() if ones else rows.double()
    expected = full.transpose(1, 2) @ full
    assert_near(symmetric.unpack(packed, size), expected)
    for x in (
        torch.randn(blocks, size, 70),
        torch.randn(blocks, 70, size).transpose(1, 2),
        torch.randn(blocks, size, 1),
    ):
        assert_near(symmetric.multiply(packed, x), expected @ x.double())
    narrow = packed.bfloat16()
    x = torch.randn(blocks, size, 70)
    assert_near(symmetric.multiply(narrow, x), expected @ x.double(), 0.02)


@pytest.mark.parametrize("quick, digits", [(True, 0.01), (False, 1e-6)])
@pytest.mark.parametrize("blocks", [1, 3])
def test_narrow_matrices_are_multiplied_in_float32_where_that_is_quicker(blocks, quick, digits, monkeypatch):
    monkeypatch.setattr(products, "narrow_is_quick", lambda device: quick)
    rows = torch.randn(blocks, 60, 40, generator=torch.Generator().manual_seed(0))
    narrow = symmetric.pack(rows.transpose(1, 2) @ rows, torch.zeros(blocks, symmetric.packed_length(40))).bfloat16()
    expected = symmetric.unpack(narrow, 40).double() @ rows.transpose(1, 2).double()
    found = symmetric.multiply(narrow, rows.transpose(1, 2)).double()
    assert ((found - expected).norm() > 1e-4 * expected.norm()) == quick
    assert_near(found, expected, digits)


@pytest.mark.skipif(not narrow_is_quick(torch.device("cpu")), reason="no bfloat16 instructions")
@pytest.mark.parametrize("ones", [False, True])
def test_narrow_gram_matrices_are_rounded_to_bfloat16(ones):
    rows = torch.randn(1, 500, 200, generator=torch.Generator().manual_seed(0))
    packed = torch.zeros(1, symmetric.packed_length(200 + ones))
    symmetric.add_gram(packed, rows, ones, narrow=True)
    full = torch.cat([rows, torch.ones(1, 500, 1)], 2).double() if ones else rows.double()
    expected = full.transpose(1, 2) @ full
    found = symmetric.unpack(packed, 200 + ones)
    assert_near(found, expected, 2.0**-8)
    assert (found.double() - expected).norm() > 2.0**-12 * expected.norm()  # it was taken


@pytest.mark.skipif(not narrow_is_quick(torch.device("cpu")), reason="no bfloat16 instructions")
def test_narrow_patch_covariances_are_rounded_to_bfloat16():
    x = torch.randn(16, 8, 12, 10, generator=torch.Generator().manual_seed(0))
    geometry = autocorrelation.Geometry((12, 10), (3, 3), (1, 1), (1, 1), (1, 1))
    expected = autocorrelation.patch_covariance(x.double(), geometry)
    found = autocorrelation.patch_covariance(x, geometry, narrow=True)
    assert_near(found, expected, 2.0**-8)
    assert (found.double() - expected).norm() > 2.0**-12 * expected.norm()


def test_looking_at_images_in_portions_changes_nothing(monkeypatch):
    x, g = (torch.randn(7, 5, 8, 9, dtype=torch.float64) for _ in range(2))
    geometry = autocorrelation.Geometry((8, 9), (3, 3), (1, 1), (1, 1), (1, 1))
    mean = x.flatten(2).mean(2)
    whole = (
        autocorrelation.patch_covariance(x, geometry),
        *norm._centred_moments(x.flatten(2), g.flatten(2), mean),
    )
    monkeypatch.setattr(autocorrelation, "PORTION_BYTES", 2 * x[0].nbytes)
    monkeypatch.setattr(norm, "PORTION_VALUES", 2 * x[0].numel())
    parts = (
        autocorrelation.patch_covariance(x, geometry),
        *norm._centred_moments(x.flatten(2), g.flatten(2), mean),
    )
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_channels_with_a_mean_far_from_zero_keep_their_variance():
    """A mean of 1000 deviations: sums of squares alone would lose the variance in single precision."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, 4, 64, generator=generator) + 1000
    _, squared = norm._centred_moments(x, x, x.mean((0, 2)).expand(16, 4))
    exact = torch.var(x.double(), (0, 2), correction=0)
    torch.testing.assert_close(squared.mean(0).double(), exact, rtol=1e-3, atol=0.0)
