"""The blocked inverse against an exact one."""

import pytest
import torch

from hpcopt.solvers.kaisa import root, symmetric
from hpcopt.solvers.kaisa.factors import LARGE, Factor, Failures, invert_packed


def matrix_of(condition: float, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix with eigenvalues from 1 down to 1 / condition, and its inverse; float64."""
    q = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(n))).Q
    d = torch.logspace(0, -torch.log10(torch.tensor(condition)).item(), n, dtype=torch.float64)
    return (q * d) @ q.T, (q / d) @ q.T


@pytest.mark.parametrize("n", [1, 128, 129, 200, 257, 700])
@pytest.mark.parametrize(("dtype", "condition", "error"), [(torch.float64, 1e6, 1e-9), (torch.float32, 1e4, 2e-4)])
def test_is_the_inverse(n, dtype, condition, error):
    matrix, exact = matrix_of(condition, n)
    out = torch.zeros(1, symmetric.packed_length(n), dtype=dtype)
    assert root.invert(matrix.to(dtype), out[0])
    inverse = symmetric.unpack(out, n)[0].double()
    assert (inverse - exact).norm() < error * exact.norm()


@pytest.mark.parametrize("at", [0, 70, 299])
def test_says_that_a_matrix_is_not_positive_definite(at):
    matrix = torch.eye(300)
    matrix[at, at] = -1
    out = torch.full((symmetric.packed_length(300),), 7.0)
    assert not root.invert(matrix, out)
    assert (out == 7).all()


def test_a_large_factor_that_is_singular_gets_more_damping():
    rows = torch.randn(3, LARGE, dtype=torch.float64)
    full = rows.T @ rows - 2e-6 * torch.eye(LARGE, dtype=torch.float64)
    packed = torch.zeros(2, symmetric.packed_length(LARGE), dtype=torch.float64)
    symmetric.pack(full.expand(2, -1, -1), packed)
    failures, out = Failures(), torch.zeros_like(packed)
    invert_packed(Factor(packed, LARGE, 1e-7, out), failures)
    assert failures.more_damping == 2  # 1e-7 and 1e-6 are not enough
    expected = torch.linalg.inv(full + 1e-5 * torch.eye(LARGE, dtype=torch.float64))
    for inverse in symmetric.unpack(out, LARGE):
        assert (inverse - expected).norm() < 1e-6 * expected.norm()
