"""The nearest matrix with orthonormal rows or columns, roughly, by products alone.

With X a matrix over its norm, the Newton-Schulz iteration ::

    X <- a X + (b X X^T + c (X X^T)^2) X,   (a, b, c) = (3.4445, -4.7750, 2.0315)

keeps the singular vectors of X and brings its singular values to between .7 and 1.2 in five rounds (Jordan et al. 2024,
"Muon: an optimizer for hidden layers", whose coefficients rise steepest at 0 and do not converge).
Of a wide matrix the same is had from its Gram matrix, with fewer operations; in float32 small singular values then come
out with an error of up to 1e-3 of the largest.
"""

import torch
from torch import Tensor

from hpcopt.solvers.kaisa import symmetric

A, B, C = 3.4445, -4.7750, 2.0315
EPS = 1e-7  # least norm that is divided by
WIDE = 2  # times as long as short: then the Gram matrix's products are fewer


def orthogonalized(x: Tensor, iterations: int) -> Tensor:
    """Give matrices, shape (batch, n, m), with all their singular values near 1; those that are 0 stay so."""
    turned = x.shape[1] > x.shape[2]
    x = x.transpose(1, 2) if turned else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=EPS)
    if x.shape[2] >= WIDE * x.shape[1] and x.dtype != torch.bfloat16:
        x = _by_gram(x, iterations)
    else:
        round_ = _round if len(x) == 1 else _rounds
        for _ in range(iterations):
            x = round_(x)
    return x.transpose(1, 2) if turned else x


def flops(n: int, m: int, iterations: int) -> float:
    """Operations for one matrix."""
    short, long = sorted((n, m))
    if long >= WIDE * short:
        return 4 * short**2 * long + (iterations * 8 - 6) * short**3
    return iterations * (4 * short**2 * long + 2 * short**3)


def _by_gram(x: Tensor, iterations: int) -> Tensor:
    """The same polynomial of ``X X^T``, which is small where X is wide; X itself is multiplied once.

    A round multiplies X from the left by Z + a I, so its Gram matrix from both sides.
    """
    is_one = len(x) == 1 and x.is_cpu
    x = x.contiguous()

    def plus(y: Tensor, beta: float, left: Tensor, right: Tensor, alpha: float = 1.0) -> Tensor:
        """``beta Y + alpha left right``, of symmetric matrices that commute; of one in main memory half is computed."""
        if not is_one:
            return torch.baddbmm(y, left, right, beta=beta, alpha=alpha)
        product = symmetric.product(left[0], right[0])
        return (product if alpha == 1 else product.mul_(alpha)).add_(y[0], alpha=beta).unsqueeze(0)

    gram = symmetric.product(x[0], x[0]).unsqueeze(0) if is_one else x @ x.transpose(1, 2)
    whole = None
    for left in reversed(range(iterations)):
        z = plus(gram, B, gram, gram, C)
        if whole is None:
            whole = z.clone()
            whole.diagonal(dim1=1, dim2=2).add_(A)
        else:
            whole = plus(whole, A, z, whole)
        if left:
            turned = plus(gram, A, z, gram)
            gram = plus(turned, A, turned, z)
    assert whole is not None
    return symmetric.times(whole[0], x[0]).unsqueeze(0) if is_one else whole @ x


def _rounds(x: Tensor) -> Tensor:
    gram = x @ x.transpose(1, 2)
    return torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=B, alpha=C), x, beta=A)


def _round(x: Tensor) -> Tensor:
    """Of one matrix; in main memory half of what is symmetric is computed."""
    if not x.is_cpu or x.dtype != torch.float32:
        return _rounds(x)
    matrix = x[0].contiguous()
    gram = symmetric.product(matrix, matrix)
    polynomial = symmetric.product(gram, gram).mul_(C).add_(gram, alpha=B)
    return symmetric.times(polynomial, matrix).add_(matrix, alpha=A).unsqueeze(0)
