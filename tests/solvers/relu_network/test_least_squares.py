"""Least squares over ranks against numpy's and scipy's, by normal equations and by LSQR."""

import math

import numpy as np
import pytest
import scipy.sparse.linalg
import torch

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World, alone
from hpcopt.errors import NonFiniteError
from hpcopt.solvers.relu_network import least_squares as module
from hpcopt.solvers.relu_network.least_squares import Products, by_lsqr, by_normal_equations, least_squares

WAYS = [by_normal_equations, by_lsqr]


def problem(n: int, k: int = 3, d: int = 4, seed: int = 0) -> tuple[Products, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    c, h, y = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((n, k), (n, d), (n,)))
    return Products((c > 0).double(), h), y


def dense(b: Products) -> np.ndarray:
    return np.stack([np.kron(c, h) for c, h in zip(b.c.numpy(), b.h.numpy(), strict=True)])


def part(b: Products, y: torch.Tensor, world: World) -> tuple[Products, torch.Tensor]:
    c, h, mine = (t.tensor_split(world.size)[world.rank] for t in (b.c, b.h, y))
    return Products(c, h), mine


def test_products_are_those_of_the_matrix(monkeypatch):
    b, y = problem(50)
    matrix, w = dense(b), torch.arange(12, dtype=torch.float64)
    np.testing.assert_allclose(b.times(w), matrix @ w.numpy(), atol=1e-12)
    np.testing.assert_allclose(b.transposed(y), matrix.T @ y.numpy(), atol=1e-12)
    np.testing.assert_allclose(b.gram(), matrix.T @ matrix, atol=1e-12)
    monkeypatch.setattr(module, "CHUNK", 100)  # of 8 rows
    np.testing.assert_allclose(b.gram(), matrix.T @ matrix, atol=1e-12)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("n", [100, 12, 7, 1], ids=["tall", "square", "wide", "one row"])
def test_the_solution_is_numpys(way, n):
    b, y = problem(n)
    expected = np.linalg.lstsq(dense(b), y.numpy())[0]
    np.testing.assert_allclose(way(alone(), b, y), expected, rtol=0, atol=1e-9 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("way", WAYS)
def test_without_full_rank_it_is_the_solution_of_least_norm(way):
    b, y = problem(60)
    b.c[:, 1] = 0.0  # a unit that is never active
    b.h[:, 3] = 2 * b.h[:, 0]
    expected = np.linalg.pinv(dense(b)) @ y.numpy()
    np.testing.assert_allclose(way(alone(), b, y), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("way", WAYS)
def test_a_right_hand_side_of_the_matrix_is_solved_to_the_last_digits(way):
    b, _ = problem(100)
    w = torch.linspace(-1, 1, 12, dtype=torch.float64)
    torch.testing.assert_close(way(alone(), b, b.times(w)), w, rtol=0, atol=2e-14)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("n", [50, 2, 0], ids=["ragged", "an empty rank", "nothing"])
def test_ranks_find_the_same(way, n):
    b, y = problem(n)
    one = way(alone(), b, y)
    for size in (2, 3):
        found = run_ranks(size, lambda transport: way(World(transport), *part(b, y, World(transport))))
        assert all(torch.equal(each, found[0]) for each in found)
        torch.testing.assert_close(found[0], one, rtol=0, atol=1e-9)


def test_lsqr_takes_scipys_path():
    b, y = problem(200, seed=1)
    found = scipy.sparse.linalg.lsqr(dense(b), y.numpy(), atol=1e-15, btol=1e-15, iter_lim=100)[0]
    np.testing.assert_allclose(by_lsqr(alone(), b, y), found, atol=1e-12)


def test_many_unknowns_take_lsqr(monkeypatch):
    b, y = problem(50)
    monkeypatch.setattr(module, "by_normal_equations", None)
    monkeypatch.setattr(module, "DIRECT", 11)
    torch.testing.assert_close(least_squares(alone(), b, y), by_lsqr(alone(), b, y), rtol=0, atol=0)


@pytest.mark.parametrize("way", WAYS)
def test_who_holds_nan_is_named(way):
    b, y = problem(50)
    y[40] = math.nan

    def program(transport):
        world = World(transport)
        with pytest.raises(NonFiniteError, match=r"rows of the least squares of ranks \[2\] hold Inf or NaN"):
            way(world, *part(b, y, world))

    run_ranks(3, program)
