"""The nearest matrix with orthonormal rows or columns, roughly, by products alone.

With X a matrix over its norm, the Newton-Schulz iteration ::

    X <- a X + (b X X^T + c (X X^T)^2) X,   (a, b, c) = (3.4445, -4.7750, 2.0315)

keeps the singular vectors of X and brings its singular values to between .7 and 1.2 in five rounds (Jordan et al. 2024,
"Muon: an optimizer for hidden layers", whose coefficients rise steepest at 0 and do not converge).
"""

import torch
from torch import Tensor

from hpcopt.solvers.kaisa import symmetric
from hpcopt.solvers.kaisa.products import times_transposed

A, B, C = 3.4445, -4.7750, 2.0315
EPS = 1e-7  # least norm that is divided by


def orthogonalized(x: Tensor, iterations: int) -> Tensor:
    """Give matrices, shape (batch, n, m), with all their singular values near 1; those that are 0 stay so."""
    turned = x.shape[1] > x.shape[2]
    x = x.transpose(1, 2) if turned else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=EPS)
    round_ = _round if len(x) == 1 else _rounds
    for _ in range(iterations):
        x = round_(x)
    return x.transpose(1, 2) if turned else x


def flops(n: int, m: int, iterations: int) -> float:
    """Operations for one matrix."""
    short, long = sorted((n, m))
    return iterations * (4 * short**2 * long + 2 * short**3)


def _rounds(x: Tensor) -> Tensor:
    gram = x @ x.transpose(1, 2)
    return torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=B, alpha=C), x, beta=A)


def _round(x: Tensor) -> Tensor:
    """Of one matrix; in main memory by the quicker kernel."""
    if not x.is_cpu or x.dtype != torch.float32:
        return _rounds(x)
    matrix = x[0].contiguous()
    gram = times_transposed(matrix, matrix)
    polynomial = times_transposed(gram, gram).mul_(C).add_(gram, alpha=B)
    return symmetric.times(polynomial, matrix).add_(matrix, alpha=A).unsqueeze(0)
