"""The nearest matrix with orthonormal rows or columns, roughly, by products alone.

With X a matrix over its norm, the iteration of Newton and Schulz ::

    X <- a X + (b X X^T + c (X X^T)^2) X

keeps the singular vectors of X and brings its singular values near 1 in a few rounds (``rounds.py``; Jordan et al.
2024, "Muon: an optimizer for hidden layers"). Of a wide matrix the same is had from its Gram matrix, with fewer
operations; in float32 small singular values then come out with an error of up to 1e-3 of the largest.
"""

from collections.abc import Callable, Sequence

from torch import Tensor, addmm, baddbmm, div

from hpcopt.solvers.kaisa import products, symmetric
from hpcopt.solvers.kaisa.rounds import Polynomial, Rounds

EPS = 1e-7  # least norm that is divided by
WIDE = 2  # times as long as short: then the Gram matrix's products are fewer


def orthogonalized(x: Tensor, rounds: Rounds) -> Tensor:
    """Give matrices, shape (batch, n, m), with all their singular values near 1; those that are 0 stay so."""
    turned = x.shape[1] > x.shape[2]
    flat = x.mT if turned else x
    flat = _orthogonalized(flat[0] if len(x) == 1 else flat, rounds)  # batches of one are slow, above all in bfloat16
    flat = flat.unsqueeze(0) if len(x) == 1 else flat
    return flat.mT if turned else flat


def flops(n: int, m: int, iterations: int) -> float:
    """Operations for one matrix."""
    short, long = sorted((n, m))
    if long >= WIDE * short:
        return 4 * short**2 * long + (iterations * 8 - 6) * short**3
    return iterations * (4 * short**2 * long + 2 * short**3)


def _orthogonalized(x: Tensor, rounds: Rounds) -> Tensor:
    """Of a matrix that is not higher than wide, or of a batch of such."""
    x = div(x, x.norm(dim=(-2, -1), keepdim=True).clamp(min=EPS), out=x.new_empty(x.shape))  # in rows
    gram = _gram(x)
    if rounds.tight:
        norm = gram.norm(dim=(-2, -1), keepdim=True).clamp(min=EPS)
        gram, x = gram / norm, x / norm.sqrt()
    wide = x.shape[-1] >= WIDE * x.shape[-2] and x.dtype.itemsize > 2
    return (_by_gram if wide else _directly)(x, gram, rounds.polynomials)


def _directly(x: Tensor, gram: Tensor, polynomials: Sequence[Polynomial]) -> Tensor:
    for i, (a, b, c) in enumerate(polynomials):
        gram = _gram(x) if i else gram
        z = _plus(gram, b, gram, gram, c)
        x = symmetric.times(z, x).add_(x, alpha=a) if _is_halved(x) else _fused(x)(x, z, x, beta=a)
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
            whole.diagonal(dim1=-2, dim2=-1).add_(a)
        else:
            whole = _plus(whole, a, z, whole)
        if left:
            turned = _plus(gram, a, z, gram)
            gram = _plus(turned, a, turned, z)
    assert whole is not None
    return symmetric.times(whole, x) if _is_halved(x) else whole @ x


def _gram(x: Tensor) -> Tensor:
    return symmetric.product(x, x) if _is_halved(x) else x @ x.mT


def _plus(y: Tensor, beta: float, left: Tensor, right: Tensor, alpha: float = 1.0) -> Tensor:
    """``beta Y + alpha left right``, of symmetric matrices that commute."""
    if not _is_halved(y):
        return _fused(y)(y, left, right, beta=beta, alpha=alpha)
    product = symmetric.product(left, right)
    return (product if alpha == 1 else product.mul_(alpha)).add_(y, alpha=beta)


def _fused(x: Tensor) -> Callable[..., Tensor]:
    return addmm if x.ndim == 2 else baddbmm


def _is_halved(x: Tensor) -> bool:
    """Of one large matrix in main memory half of what is symmetric is computed."""
    large = x.shape[-2] > symmetric.LEAST_HALVED or products.ONEDNN_IS_QUICKER
    return large and x.ndim == 2 and x.is_cpu and x.dtype.itemsize > 2
