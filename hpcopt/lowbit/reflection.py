"""Mix each large row of a matrix with small ones, so that rows have ranges alike: the matrix S of the block Householder
quantizer (Chen et al. 2020, arXiv:2010.14298).

Rows are put into groups, one large row and small ones each. Within a group of n rows the large one is reflected onto
the mean of all::

    S = Q diag(1, t, ..., t)    Q = I - beta u u^T    u = 1 / sqrt(n) - e_1    beta = 2 / |u|^2

Q is symmetric and orthogonal and maps e_1 to 1 / sqrt(n), so the large row is dealt evenly to all n. With ranges l1 of
the large row and l2 of the largest small one, a row of ``S G`` has a range of at most ``w1 + t w2``, where ``w1 = l1 /
sqrt(n)`` and ``w2 = l2 max |Q_ij|`` over the columns of small rows. The squared error of rounding is at most that range
squared times ``|S^-1|^2 = 1 + (n - 1) / t^2``, and this product is smallest at ``t = ((n - 1) w1 / w2)^(1/3)``.

A common factor of a group's rows is left out: quantizers with a scale for each row would take it away. No matrix of N
by N is made: in a group Q is a dot product and an axpy.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

SMALLEST = 1e-8  # of a row's range, as part of the largest


@dataclass(frozen=True)
class GroupedReflection:
    """The matrix S, (N, N), by what stands in its rows' groups.

    Attributes:
        group: of each row, (N,), int64, by its number.
        u: of each row's reflection, (N,), float64; 0 in a group of one.
        beta: of each row's group, (N,), float64.
        scale: the diagonal, (N,), float64: 1 or t.
    """

    group: Tensor
    u: Tensor
    beta: Tensor
    scale: Tensor

    @classmethod
    def for_ranges(cls, ranges: Tensor) -> Self:
        """Group rows by their ranges, (N,), N > 0. The k largest lead a group, k being the most for which the smallest
        of them times the rows that are left is more than the sum of the k; rows that are left are dealt to these in
        proportion to their ranges.
        """
        count, device = len(ranges), ranges.device
        largest = torch.nan_to_num(ranges.double(), posinf=0.0).amax()
        floor = torch.where(largest > 0, SMALLEST * largest, 1.0)
        sizes, order = (torch.nan_to_num(ranges.double(), posinf=0.0) + floor).sort(descending=True, stable=True)
        place = torch.arange(count, device=device)

        sums = sizes.cumsum(0)
        leads = torch.where((count - 1 - place) * sizes > sums, place + 1, 1).amax(0, keepdim=True)
        left = count - leads
        dealt = (left * sizes.cumsum(0) / sums.gather(0, leads - 1)).round().long()
        dealt = torch.where(place < leads - 1, dealt, left)
        leader = place < leads
        group = torch.where(leader, place, torch.searchsorted(dealt, place - leads, right=True).clamp(max=count - 1))

        n = torch.zeros_like(sizes).index_add_(0, group, torch.ones_like(sizes)).gather(0, group)
        first_small = (leads + dealt - dealt.diff(prepend=dealt.new_zeros(1))).clamp(max=count - 1)
        l1, l2 = sizes.gather(0, group), sizes.gather(0, first_small.gather(0, group))
        several, root = n > 1, n.sqrt()
        off = 1 / (n - root).where(several, 1.0)  # of a small row's column: 1 - off on the diagonal, else -off
        peak = torch.maximum((1 - off).abs(), 1 / root).maximum(off.where(n > 2, 0.0))
        t = ((n - 1) * (l1 / root) / (l2 * peak)).pow(1 / 3)

        def by_row(values: Tensor) -> Tensor:
            return torch.empty_like(values).scatter_(0, order, values)

        return cls(
            by_row(group),
            by_row((1 / root - leader.double()).where(several, 0.0)),
            by_row((1 / (1 - 1 / root)).where(several, 0.0)),
            by_row(t.where(~leader, 1.0)),
        )

    def apply(self, x: Tensor) -> Tensor:
        """S x of x, (N, D)."""
        return self._reflected(x * _column(self.scale, x))

    def undo(self, x: Tensor) -> Tensor:
        """S^-1 x of x, (N, D)."""
        return self._reflected(x) / _column(self.scale, x)

    def column_norms(self) -> Tensor:
        """Squared norms of the columns of S^-1, (N,), float64: what noise on a row of ``S x`` adds to x."""
        spread = torch.zeros_like(self.u).index_add_(0, self.group, (self.u / self.scale).square())
        along = self.u.square()
        return (1 - 2 * self.beta * along) / self.scale.square() + (
            self.beta.square() * along * spread.gather(0, self.group)
        )

    def _reflected(self, x: Tensor) -> Tensor:
        dots = torch.zeros_like(x).index_add_(0, self.group, x * _column(self.u, x))
        return x.addcmul(_column(self.beta * self.u, x), dots.index_select(0, self.group), value=-1)


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.dtype)[:, None]
