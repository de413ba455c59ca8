"""Linear least squares whose rows are spread over ranks: the solution of least norm, to the limit of float64.

Row i of the matrix is the product ``c_i (x) h_i`` of two short vectors, as a layer of a network has them, so a matrix
of n rows and k d columns is kept as n rows of k and of d.

Up to ``DIRECT`` unknowns the normal equations ``B^T B w = B^T y`` are summed over the ranks, and solved by their
eigenvectors; what rounding cost is made good by solving once more for the residual. Beyond, LSQR (Paige and Saunders
1982) sums one vector of the unknowns in each iteration.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hpcopt.comm.world import World
from hpcopt.solvers.relu_network.sums import summed

DIRECT = 1024  # unknowns; an eigendecomposition of as many takes half a second
CHUNK = 1 << 21  # values of the matrix that are there at once
ROWS = "rows of the least squares"
EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class Products:
    """This rank's rows of the matrix: the row-wise Khatri-Rao product of two matrices.

    Attributes:
        c: shape (n, k), float64.
        h: shape (n, d), float64.
    """

    c: Tensor
    h: Tensor

    @property
    def unknowns(self) -> int:
        """Columns of the matrix."""
        return self.c.shape[1] * self.h.shape[1]

    def times(self, w: Tensor) -> Tensor:
        """The matrix times a vector, (k d,): (n,)."""
        return ((self.h @ w.view(self.c.shape[1], -1).T) * self.c).sum(1)

    def transposed(self, r: Tensor) -> Tensor:
        """The transposed matrix times a vector, (n,): (k d,)."""
        return ((self.c * r[:, None]).T @ self.h).ravel()

    def gram(self) -> Tensor:
        """The transposed matrix times the matrix, (k d, k d)."""
        total = self.c.new_zeros(self.unknowns, self.unknowns)
        rows = max(1, CHUNK // self.unknowns)
        for c, h in zip(torch.split(self.c, rows), torch.split(self.h, rows), strict=True):
            b = (c[:, :, None] * h[:, None, :]).flatten(1)
            total.addmm_(b.T, b)
        return total


def least_squares(world: World, b: Products, y: Tensor) -> Tensor:
    """Minimise ``|B w - y|_2``, the w of least norm where there are several, (k d,), the same on all ranks.

    Directions along which B is below about 1e-7 of its largest singular value count as directions without any rows.

    Collective: over all ranks, (m + 1)(m + 2) / 2 + m numbers of m unknowns; beyond ``DIRECT``, m + 1 an iteration.

    Args:
        b: this rank's rows, perhaps none.
        y: this rank's right-hand side, (n,), float64.

    Raises:
        NonFiniteError: on all ranks: rows are not finite; the message names the ranks that have them.
    """
    return (by_normal_equations if b.unknowns <= DIRECT else by_lsqr)(world, b, y)


def by_normal_equations(world: World, b: Products, y: Tensor) -> Tensor:
    """As ``least_squares``, for any number of unknowns."""
    m = b.unknowns
    lower = torch.tril_indices(m, m, device=y.device)
    gram = b.gram()
    packed = summed(world, torch.cat([gram[lower[0], lower[1]], b.transposed(y)]), ROWS)
    gram = gram.zero_().index_put_((lower[0], lower[1]), packed[:-m])
    values, vectors = torch.linalg.eigh(gram)  # reads the lower half
    kept = values > m * EPS * values[-1].clamp(min=0)
    inverse = torch.where(kept, 1 / values, 0.0)

    def solved(right: Tensor) -> Tensor:
        solution: Tensor = vectors @ (inverse * (vectors.T @ right))
        return solution

    w = solved(packed[-m:])
    return w + solved(summed(world, b.transposed(y - b.times(w)), ROWS))


def by_lsqr(world: World, b: Products, y: Tensor) -> Tensor:
    """As ``least_squares``, by LSQR from zero, until ``|B^T r| <= eps |B| |r|``, r is rounding, or 4 m iterations."""
    w = y.new_zeros(b.unknowns)
    u, beta, v, alpha = _bidiagonal(world, b, y, w)
    length, norm_squared = beta, 0.0
    direction, phi, rho = v, beta, alpha
    for _ in range(4 * b.unknowns):
        if alpha == 0:
            break
        u, beta, v, next_alpha = _bidiagonal(world, b, b.times(v) - alpha * u, v)
        norm_squared += alpha**2 + beta**2
        bar = (rho**2 + beta**2) ** 0.5
        cosine, sine = rho / bar, beta / bar
        w = w + (cosine * phi / bar) * direction
        direction = v - (sine * next_alpha / bar) * direction
        rho, phi, alpha = -cosine * next_alpha, sine * phi, next_alpha
        if phi <= EPS * length or alpha * abs(cosine) <= EPS * norm_squared**0.5:
            break
    return w


def _bidiagonal(world: World, b: Products, u: Tensor, v: Tensor) -> tuple[Tensor, float, Tensor, float]:
    """The next of two bases from the direction u: this rank's rows of ``u / beta``, and ``B^T u / beta - beta v`` as
    alpha times a unit vector. Collective: one sum of m + 1 numbers.
    """
    packed = summed(world, torch.cat([b.transposed(u), (u @ u)[None]]), ROWS)
    beta = float(packed[-1].sqrt())
    if beta == 0:
        return u, 0.0, v, 0.0
    v = packed[:-1] / beta - beta * v
    alpha = float(torch.linalg.vector_norm(v))
    return u / beta, beta, v / alpha if alpha else v, alpha
