"""Moments of Gaussian samples against their closed forms, and what is made of them."""

import math

import pytest
import torch

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World, alone
from hpcopt.errors import NonFiniteError
from hpcopt.shapes.context import Context
from hpcopt.solvers.relu_network.moments import C2, eigenvectors, first_two, fourth_moment, weights_of_moments
from hpcopt.workloads.recovery import recovery_error
from hpcopt.workloads.teacher import TeacherConfig

MILLION, PIECE = 1_000_000, 50_000


def samples(d: int, units: int, count: int, seed: int = 0, noise: float = 0.0):
    """A teacher's weights, inputs and targets."""
    config = TeacherConfig(inputs=d, hidden=(units,), train=count, batch=count, noise=noise)
    workload = config.build(Context(run_seed=seed))
    batch = next(workload.train_batches(0, 1, 0))
    return workload.teacher.totals()[0], batch.tensors["inputs"], batch.tensors["targets"]


def estimate(x, y, units, seed=0, world=None):
    world = world or alone()
    mine = [part.tensor_split(world.size)[world.rank] for part in (x, y)]
    generator = torch.Generator().manual_seed(seed)
    return weights_of_moments(world, lambda: [(a, b) for a, b in [mine] if len(a)], x.shape[1], units, generator)


@pytest.fixture(scope="module")
def million():
    return samples(4, 2, MILLION)


def within_three_sigma(found, expected, terms):
    """A mean of terms, (n, ...), against its expectation."""
    sigma = terms.std(0) / math.sqrt(len(terms))
    assert bool(((found - expected).abs() <= 3 * sigma).all()), (found - expected) / sigma


def test_the_first_two_moments_are_what_the_theory_says(million):
    w, x, y = million
    moments = first_two(alone(), lambda: zip(x.split(PIECE), y.split(PIECE), strict=True), 4)
    lengths, u = w.norm(dim=1), torch.nn.functional.normalize(w, dim=1)
    centred = (y - y.mean())[:, None] * x
    within_three_sigma(moments.first, w.sum(0) / 2, centred)
    within_three_sigma(moments.second, C2 * (u.T * lengths) @ u, centred[:, :, None] * x[:, None])
    within_three_sigma(torch.tensor(moments.mean), C2 * lengths.sum(), y)
    assert moments.samples == MILLION


def test_the_fourth_moment_is_what_the_theory_says(million):
    w, x, y = million
    space = torch.linalg.qr(w.T)[0]
    found = fourth_moment(alone(), lambda: [(x, y)], space)
    lengths, u = w.norm(dim=1), torch.nn.functional.normalize(w, dim=1) @ space
    expected = -C2 * torch.einsum("j,ja,jb,jc,jd->abcd", lengths, u, u, u, u)
    assert float((found - expected).abs().max()) < 0.03 * float(expected.abs().max())


def test_power_iteration_finds_the_eigenvectors_of_an_orthogonal_tensor():
    generator = torch.Generator().manual_seed(0)
    q = torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=torch.float64))[0]
    values = torch.tensor([3.0, 1.0, 2.0, 0.5, 2.5], dtype=torch.float64)
    tensor = torch.einsum("j,aj,bj,cj,dj->abcd", values, q, q, q, q)
    found = eigenvectors(tensor, generator)
    overlap = (q.T @ found).abs()
    torch.testing.assert_close(overlap[values.argsort(descending=True)], torch.eye(5).double(), rtol=0, atol=1e-10)


def test_the_error_falls_like_the_root_of_the_samples():
    def error(count: int) -> float:
        errors = []
        for seed in range(5):
            w, x, y = samples(10, 5, count, seed)
            errors.append(recovery_error([estimate(x, y, 5)], [w]))
        return sorted(errors)[2]

    assert 2.5 < error(2500) / error(40_000) < 7  # sixteen times the samples


def test_one_unit_of_any_sign_and_length():
    w, x, _ = samples(3, 1, 20_000)
    for factor in (-3.0, 0.01):
        target = factor * w
        assert recovery_error([estimate(x, (x @ target[0]).relu(), 1)], [target]) < 0.05


def test_all_ranks_make_the_same_of_it():
    _, x, y = samples(6, 3, 500)
    one = estimate(x, y, 3)
    for size in (2, 3):
        found = run_ranks(size, lambda transport: estimate(x, y, 3, world=World(transport)))
        assert all(torch.equal(each, found[0]) for each in found)
        torch.testing.assert_close(found[0], one, rtol=0, atol=1e-6)  # which of equal starts is best is rounding
    few = run_ranks(3, lambda transport: estimate(x[:2], y[:2], 2, world=World(transport)))  # a rank without samples
    assert all(each.isfinite().all() for each in few)


@pytest.mark.parametrize("where", ["x", "y"])
def test_who_holds_nan_is_named(where):
    _, x, y = samples(4, 2, 300)
    (x if where == "x" else y)[150] = math.nan

    def program(transport):
        with pytest.raises(NonFiniteError, match=r"of ranks \[1\] hold Inf or NaN"):
            estimate(x, y, 2, world=World(transport))

    run_ranks(3, program)
