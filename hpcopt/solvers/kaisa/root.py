"""The inverse of a positive definite matrix through its inverse Cholesky root X = L^-1, by halves, so that nearly all
of it is matrix products: for a thousand rows it takes half to three quarters of the time of LAPACK's own steps.

    [A B^T]        [L       ]      [   X          ]
    [B C  ],   L = [B X^T L'],  X = [-X' B X^T X  X'],   L' L'^T = C - (B X^T)(B X^T)^T

The inverse is X^T X. Only roots are ever inverted, whose condition is the square root of the matrix's, so the error is
that of a plain Cholesky inverse.
"""

import torch
from torch import Tensor

from hpcopt.solvers.kaisa import symmetric
from hpcopt.solvers.kaisa.products import times_transposed

END_ROWS = 128


def invert(matrix: Tensor, out: Tensor) -> bool:
    """Write the lower half of the inverse of a symmetric matrix, shape (n, n), to out, shape (packed_length(n),).

    Returns:
        Whether the matrix is positive definite in its precision; if not, out is as it was.
    """
    n = len(matrix)
    root = torch.zeros_like(matrix)
    if not _fill_root(matrix, root):
        return False
    columns = root.T.contiguous()
    del root  # three squares at most are alive, with the matrix
    for panel in symmetric.panels(n):
        left, right = columns[panel.first : panel.last, panel.first :], columns[: panel.last, panel.first :]
        symmetric.panel_view(out[None], panel)[0] = times_transposed(left.contiguous(), right.contiguous())
    return True


def _fill_root(matrix: Tensor, x: Tensor) -> bool:
    """Fill the lower half of x, zeros, with the inverse root of a matrix; give whether there is one."""
    n = len(matrix)
    if n <= END_ROWS:
        root, info = torch.linalg.cholesky_ex(matrix)
        if not info:
            torch.linalg.solve_triangular(root, torch.eye(n, dtype=x.dtype, device=x.device), upper=False, out=x)
        return not info
    k = -(-n // 64) * 32
    upper, lower = x[:k, :k], x[k:, k:]
    if not _fill_root(matrix[:k, :k], upper):
        return False
    upper = upper.contiguous()
    below = times_transposed(matrix[k:, :k].contiguous(), upper)
    if not _fill_root(matrix[k:, k:] - times_transposed(below, below), lower):
        return False
    x[k:, :k] = times_transposed(lower.contiguous(), times_transposed(upper.T.contiguous(), below)).neg_()
    return True
