"""Weights of one ReLU layer from moments of its samples: the tensor method before gradient descent.

For x ~ N(0, I) in R^d, ``y = sum_j relu(w_j . x)`` and u_j = w_j / |w_j| (arXiv:1806.07808; Zhong et al.,
arXiv:1706.03175), with the Hermite coefficients of relu, c_2 = 1/sqrt(2 pi) = -c_4 and c_3 = 0::

    M1 = E[y x]             = 1/2 sum w_j
    M2 = E[y (x x^T - I)]   = c_2 sum |w_j| u_j u_j^T
    M4 = E[y He_4(x)]       = c_4 sum |w_j| u_j^(x4)

M2 gives the space of the u_j, M4 within it, whitened by M2, an orthogonal tensor whose eigenvectors they are, and M1
their lengths and signs. What y has of degree 0 to 2 is regressed away before M4 is summed: the corrections of He_4 are
of these degrees, and so vanish. The third moment would need no regression, but c_3 = 0.
"""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from hpcopt.comm.world import World
from hpcopt.solvers.relu_network.sums import summed

C2 = 1 / math.sqrt(2 * math.pi)
RESTARTS, ROUNDS, SETTLED = 20, 100, 1e-13  # of the power iteration
LEAST = 1e-3  # of the largest eigenvalue: less than this is noise, and is not divided by

Pieces = Callable[[], Iterable[tuple[Tensor, Tensor]]]  # this rank's samples: inputs, (n, d), and targets, (n,)


class Moments(NamedTuple):
    """Of all samples, float64: how many, the targets' mean, ``mean (y - ybar) x`` and ``mean (y - ybar) x x^T``."""

    samples: float
    mean: float
    first: Tensor
    second: Tensor


def weights_of_moments(world: World, pieces: Pieces, inputs: int, units: int, generator: torch.Generator) -> Tensor:
    """Estimate the weights, (units, inputs), float64, the same on all ranks.

    Collective: three sums, of about 2 d^2 numbers, of (1 + d + K (K + 1) / 2)^2, and of K^4. The rest is computed by
    every rank alike.

    Args:
        pieces: gives this rank's samples, once at each call.
        inputs, units: d and K, of which K is at most d.
        generator: draws the starts of the power iteration, the same on all ranks.

    Raises:
        NonFiniteError: on all ranks: samples are not finite; the message names the ranks that have them.
    """
    moments = first_two(world, pieces, inputs)
    space = torch.linalg.eigh(moments.second)[1][:, -units:]
    fourth = fourth_moment(world, pieces, space)
    values, vectors = torch.linalg.eigh(space.T @ moments.second @ space)
    values = values.clamp(min=LEAST * float(values.max().clamp(min=1e-300)))
    whitened = -fourth
    for _ in range(4):  # each leg in its turn
        whitened = torch.tensordot(whitened, vectors / values.sqrt(), dims=([0], [0]))
    directions = (vectors * values.sqrt()) @ eigenvectors(whitened, generator)
    u = torch.nn.functional.normalize(space @ directions, dim=0)
    lengths = torch.linalg.lstsq(u, 2 * moments.first[:, None], driver="gelsd").solution
    weights: Tensor = (u * lengths.ravel()).T.contiguous()
    return weights


def first_two(world: World, pieces: Pieces, inputs: int) -> Moments:
    """M1 and M2. Collective: one sum of 2 (1 + d + d^2) numbers.

    Raises:
        NonFiniteError: on all ranks: samples are not finite.
    """
    sums = torch.zeros(2, 1 + inputs + inputs**2, dtype=torch.float64)
    for x, y in pieces():
        weighed = torch.stack([torch.ones_like(y), y])
        outer = (x[:, :, None] * x[:, None, :]).flatten(1)
        sums += (weighed @ torch.cat([torch.ones_like(y)[:, None], x, outer], 1)).cpu()
    total = summed(world, sums, "moments of the samples")
    count, mean = float(total[0, 0]), float(total[1, 0] / total[0, 0])
    centred = (total[1] - mean * total[0]) / count
    return Moments(count, mean, centred[1 : 1 + inputs], centred[1 + inputs :].view(inputs, inputs))


def fourth_moment(world: World, pieces: Pieces, space: Tensor) -> Tensor:
    """M4 in the coordinates s = V^T x of a space, (d, K): ``mean r s (x) s (x) s (x) s``, (K, K, K, K), with the
    residual r of y regressed on 1, x and s_a s_b. Collective: sums of the regression, and of K^4 numbers.

    Raises:
        NonFiniteError: on all ranks: samples are not finite.
    """
    units = space.shape[1]
    rows, columns = torch.triu_indices(units, units)

    def regressors(x: Tensor, s: Tensor) -> Tensor:
        return torch.cat([x.new_ones(len(x), 1), x, s[:, rows] * s[:, columns]], 1)

    size = 1 + len(space) + len(rows)
    normal = torch.zeros(size, size + 1, dtype=torch.float64)
    for x, y in pieces():
        known = regressors(x, x @ space.to(x))
        normal += (known.T @ torch.cat([known, y[:, None]], 1)).cpu()
    normal = summed(world, normal, "regressors of the samples")
    coefficients = torch.linalg.lstsq(normal[:, :-1], normal[:, -1:], driver="gelsd").solution.ravel()
    fourth, count = torch.zeros(units**2, units**2, dtype=torch.float64), float(normal[0, 0])
    for x, y in pieces():
        s = x @ space.to(x)
        residual = y - regressors(x, s) @ coefficients.to(x)
        pairs = (s[:, :, None] * s[:, None, :]).flatten(1)
        fourth += ((pairs * residual[:, None]).T @ pairs).cpu()
    return (summed(world, fourth, "moments of the samples") / count).view(units, units, units, units)


def eigenvectors(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Eigenvectors of a symmetric tensor with orthogonal ones, (K, K, K, K), as columns, (K, K): by power iteration
    from several starts, the largest of them taken away before the next is looked for.
    """
    units, found = len(tensor), []
    rest = tensor.reshape(units, units**3)
    for _ in range(units):
        q = torch.randn(RESTARTS, units, generator=generator, dtype=tensor.dtype)
        for _ in range(ROUNDS):
            before, q = q, torch.nn.functional.normalize(_cubes(q) @ rest.T, dim=1)
            if torch.allclose(before, q, rtol=0, atol=SETTLED):
                break
        values = (q * (_cubes(q) @ rest.T)).sum(1)
        best = q[values.argmax()]
        found.append(best)
        rest = rest - values.max() * best[:, None] * _cubes(best[None])
    return torch.stack(found, 1)


def _cubes(q: Tensor) -> Tensor:
    """q (x) q (x) q of each row, (n, K): (n, K^3)."""
    squares = (q[:, :, None] * q[:, None, :]).flatten(1)
    return (squares[:, :, None] * q[:, None, :]).flatten(1)
