"""The places of the largest magnitudes, as ``compress.topk`` finds them with ``hpcopt.kernels.select``, by torch.

Compaction is torch's ``nonzero``, whose length the host must know: it waits for the device.
"""

import torch
from torch import Tensor

MAGNITUDE = 0x7FFFFFFF
INF = 0x7F800000


def sample(magnitudes: Tensor, run: int, stride: int) -> Tensor:
    """``run`` neighbours every ``stride`` values."""
    starts = torch.arange(0, magnitudes.numel() - run + 1, stride, device=magnitudes.device)
    return magnitudes[(starts[:, None] + torch.arange(run, device=magnitudes.device)).view(-1)]


def at_least(magnitudes: Tensor, threshold: int) -> Tensor:
    """Places, int64, ascending, of magnitudes (bits of float32, int32) of at least the threshold's."""
    return (magnitudes >= threshold).nonzero()[:, 0]


def count_out(magnitudes: Tensor, k: int) -> Tensor:
    """Places, int64, ascending, of exactly the k >= 1 largest magnitudes; of equal ones the first."""
    threshold = torch.topk(magnitudes, k, sorted=False).values.min()
    above, equal = magnitudes > threshold, magnitudes == threshold
    return (above | (equal & (equal.cumsum(0) <= k - above.sum()))).nonzero()[:, 0]


def largest_of_rows(magnitudes: Tensor, k: int) -> Tensor:
    """As ``count_out`` of every row of (rows, n): places, int64, (rows, k). The host need not know a length, and waits
    for nothing.
    """
    rows, n = magnitudes.shape
    threshold = torch.topk(magnitudes, k, dim=1, sorted=False).values.amin(1, keepdim=True)
    above, equal = magnitudes > threshold, magnitudes == threshold
    chosen = above | (equal & (equal.cumsum(1) <= k - above.sum(1, keepdim=True)))
    target = torch.where(chosen, chosen.cumsum(1) - 1, k)  # column k takes all others
    places = torch.empty(rows, k + 1, dtype=torch.int64, device=magnitudes.device)
    places.scatter_(1, target, torch.arange(n, device=magnitudes.device).expand(rows, n))
    return places[:, :k]


def not_finite(x: Tensor) -> Tensor:
    """The bits of Inf, int32, (), if x holds Inf or NaN, else 0."""
    return (~torch.isfinite(x).all()).int() * INF


def magnitudes(x: Tensor) -> Tensor:
    """The bits of |x|, int32."""
    return x.view(torch.int32) & MAGNITUDE
