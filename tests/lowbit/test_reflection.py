"""Rows are mixed as by the N by N matrix, whose blocks are optimal multiples of Householder reflections."""

import pytest
import torch

from hpcopt.lowbit.reflection import GroupedReflection

RANGES = {
    "one row": [3.0],
    "two rows": [1.0, 5.0],
    "equal": [2.0] * 9,
    "one outlier": [1.0, 1.1, 900.0, 0.9, 1.0, 1.2, 1.0],
    "skewed": torch.logspace(-4, 2, 40)[torch.randperm(40, generator=torch.Generator().manual_seed(0))].tolist(),
    "zeros": [0.0] * 5,
    "zeros and one": [0.0, 0.0, 7.0, 0.0],
    "lone leaders": [8.0, 8.0, 8.0, 1e-6, 8.0],
}


def matrix(of: GroupedReflection) -> torch.Tensor:
    return of.apply(torch.eye(len(of.group), dtype=torch.float64))


@pytest.mark.parametrize("ranges", RANGES.values(), ids=RANGES)
def test_mixing_is_a_matrix_with_an_inverse(ranges):
    n = len(ranges)
    found = GroupedReflection.for_ranges(torch.tensor(ranges))
    s, eye = matrix(found), torch.eye(n, dtype=torch.float64)
    torch.testing.assert_close(found.undo(s), eye, rtol=0, atol=1e-9)
    inverse = torch.linalg.inv(s)
    torch.testing.assert_close(found.undo(eye), inverse)
    torch.testing.assert_close(found.column_norms(), inverse.square().sum(0))
    x = torch.randn(n, 3, dtype=torch.float64)
    torch.testing.assert_close(found.apply(x), s @ x)
    torch.testing.assert_close(found.undo(x), inverse @ x)


@pytest.mark.parametrize("ranges", RANGES.values(), ids=RANGES)
def test_blocks_are_reflections_of_the_large_row_onto_the_mean(ranges):
    sizes = torch.tensor(ranges, dtype=torch.float64)
    found = GroupedReflection.for_ranges(sizes)
    s = matrix(found)
    q = s / found.scale
    torch.testing.assert_close(q @ q, torch.eye(len(sizes), dtype=torch.float64))
    torch.testing.assert_close(q, q.T)
    assert not s[found.group[:, None] != found.group[None]].any(), "groups do not mix"
    for rows in (torch.nonzero(found.group == g)[:, 0] for g in found.group.unique()):
        largest = rows[sizes[rows].argmax()] if sizes[rows].max() > sizes[rows].min() else None
        leaders = [r for r in rows if torch.allclose(q[rows, r], q.new_tensor(len(rows) ** -0.5))]
        assert leaders if largest is None else largest in leaders


def test_small_rows_are_dealt_in_proportion():
    """Two leaders: (5 - 2) * 20 > 50, but not (5 - 3) * 1 > 51; the first gets 3 * 30 / 50 = 2 of three rows."""
    found = GroupedReflection.for_ranges(torch.tensor([30.0, 1.0, 0.9, 20.0, 0.8]))
    assert found.group[0] == found.group[1] == found.group[2]
    assert found.group[3] == found.group[4] != found.group[0]


def test_the_scale_makes_the_bound_smallest():
    """w1 + t w2 is the largest range of a row, and 1 + (n - 1) / t^2 the squared norm of the inverse."""
    ranges = torch.tensor([50.0, 1.0, 2.0, 0.5, 0.1], dtype=torch.float64)
    found = GroupedReflection.for_ranges(ranges)
    assert len(found.group.unique()) == 1
    n, t = 5, float(found.scale[1])
    q = matrix(found) / found.scale
    w1, w2 = 50 / n**0.5, 2 * float(q[:, 1:].abs().max())

    def bound(t: float) -> float:
        return (w1 + t * w2) ** 2 * (1 + (n - 1) / t**2)

    assert all(bound(t) < bound(t * factor) for factor in (0.99, 1.01))


def test_numbers_that_are_none_do_not_stop_it():
    for bad in (torch.nan, torch.inf):
        found = GroupedReflection.for_ranges(torch.tensor([1.0, bad, 2.0, 3.0]))
        assert found.scale.isfinite().all() and found.group.max() < 4
