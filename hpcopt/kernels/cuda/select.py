"""The places of the largest magnitudes, as ``compress.topk`` finds them with ``hpcopt.kernels.select``, by torch.

Compaction is torch's ``nonzero``, whose length the host must know: it waits for the device.
"""

import torch
from torch import Tensor

MAGNITUDE = 0x7FFFFFFF


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


def magnitudes(x: Tensor) -> Tensor:
    """The bits of |x|, int32."""
    return x.view(torch.int32) & MAGNITUDE
