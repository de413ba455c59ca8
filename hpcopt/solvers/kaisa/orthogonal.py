"""The nearest matrix with orthonormal rows or columns, roughly, by products alone.

With X a matrix over its norm, the iteration of Newton and Schulz ::

    X <- a X + (b X X^T + c (X X^T)^2) X

keeps the singular vectors of X and brings its singular values near 1 in a few rounds (``rounds.py``; Jordan et al.
2024, "Muon: an optimizer for hidden layers"). Of a wide matrix the same is had from its Gram matrix, with fewer
operations; in float32 small singular values then come out with an error of up to 1e-3 of the largest.
"""

from collections.abc import Sequence

from torch import Tensor, baddbmm

from hpcopt.solvers.kaisa import products, symmetric
from hpcopt.solvers.kaisa.rounds import Polynomial, Rounds

EPS = 1e-7  # least norm that is divided by
WIDE = 2  # times as long as short: then the Gram matrix's products are fewer


def orthogonalized(x: Tensor, rounds: Rounds) -> Tensor:
    """Give matrices, shape (batch, n, m), with all their singular values near 1; those that are 0 stay so."""
    turned = x.shape[1] > x.shape[2]
    x = x.transpose(1, 2) if turned else x
    x = (x / x.norm(dim=(1, 2), keepdim=True).clamp(min=EPS)).contiguous()
    gram = _of_one(x, x) if _is_one(x) else x @ x.transpose(1, 2)
    if rounds.tight:
        norm = gram.norm(dim=(1, 2), keepdim=True).clamp(min=EPS)
        gram, x = gram / norm, x / norm.sqrt()
    whole = x.shape[2] >= WIDE * x.shape[1] and x.dtype.itemsize > 2
    x = (_by_gram if whole else _directly)(x, gram, rounds.polynomials)
    return x.transpose(1, 2) if turned else x


def flops(n: int, m: int, iterations: int) -> float:
    """Operations for one matrix."""
    short, long = sorted((n, m))
    if long >= WIDE * short:
        return 4 * short**2 * long + (iterations * 8 - 6) * short**3
    return iterations * (4 * short**2 * long + 2 * short**3)


def _directly(x: Tensor, gram: Tensor, polynomials: Sequence[Polynomial]) -> Tensor:
    for i, (a, b, c) in enumerate(polynomials):
        if i:
            gram = _of_one(x, x) if _is_one(x) else x @ x.transpose(1, 2)
        if _is_one(x):
            x = symmetric.times(_plus(gram, b, gram, gram, c)[0], x[0]).add_(x[0], alpha=a).unsqueeze(0)
        else:
            x = baddbmm(x, _plus(gram, b, gram, gram, c), x, beta=a)
    return x


def _by_gram(x: Tensor, gram: Tensor, polynomials: Sequence[Polynomial]) -> Tensor:
    """The same polynomials of ``X X^T``, which is small where X is wide; X itself is multiplied once.

    A round multiplies X from the left by Z + a I, so its Gram matrix from both sides.
    """
    whole = None
    for left, (a, b, c) in zip(reversed(range(len(polynomials))), polynomials, strict=True):
        z = _plus(gram, b, gram, gram, c)
        if whole is None:
            whole = z.clone()
            whole.diagonal(dim1=1, dim2=2).add_(a)
        else:
            whole = _plus(whole, a, z, whole)
        if left:
            turned = _plus(gram, a, z, gram)
            gram = _plus(turned, a, turned, z)
    assert whole is not None
    return symmetric.times(whole[0], x[0]).unsqueeze(0) if _is_one(x) else whole @ x


def _plus(y: Tensor, beta: float, left: Tensor, right: Tensor, alpha: float = 1.0) -> Tensor:
    """``beta Y + alpha left right``, of symmetric matrices that commute."""
    if not _is_one(y):
        return baddbmm(y, left, right, beta=beta, alpha=alpha)
    product = _of_one(left, right)
    return (product if alpha == 1 else product.mul_(alpha)).add_(y, alpha=beta)


def _is_one(x: Tensor) -> bool:
    """Of one large matrix in main memory half of what is symmetric is computed."""
    large = x.shape[1] > symmetric.LEAST_HALVED or products.ONEDNN_IS_QUICKER
    return large and len(x) == 1 and x.is_cpu and x.dtype.itemsize > 2


def _of_one(a: Tensor, b: Tensor) -> Tensor:
    return symmetric.product(a[0], b[0]).unsqueeze(0)
