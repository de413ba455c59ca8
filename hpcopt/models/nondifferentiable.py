"""Activations without a useful derivative. Each brings ``proximal``, which a solver that needs no derivative calls:

z = argmin  ratio/2 |f(z) - target|^2 + 1/2 |z - anchor|^2        exactly, or of a bound from above
"""

import torch
from torch import Tensor, nn


class Sign(nn.Module):
    """+1 for z >= 0, else -1. Its derivative is zero almost everywhere: back-propagation stops here."""

    def forward(self, z: Tensor) -> Tensor:
        """Map any shape."""
        return torch.where(z >= 0, 1.0, -1.0).to(z.dtype)

    def proximal(self, anchor: Tensor, target: Tensor, ratio: float) -> Tensor:
        """Minimise a convex bound, elementwise.

        As sign(z)^2 = 1, the first term is ``-ratio target sign(z)`` and a constant. Of ``target``, the part that the
        anchor's own sign does not explain, d = target - sign(anchor), asks z for the sign of d; the step
        ``-d sign(z)`` is bounded by the hinge ``2 |d| max(0, 1 - sgn(d) z) - |d|``, whose minimum with
        ``1/2 |z - anchor|^2`` is a move by ``2 ratio d`` that ends where ``sgn(d) z`` reaches 1.
        """
        d = target - self.forward(anchor)
        wanted = d.sign()
        room = (1 - wanted * anchor).clamp_min(0)  # no pull beyond the hinge
        return anchor + wanted * torch.minimum(2 * ratio * d.abs(), room)


class TopK(nn.Module):
    """Keep the k entries of largest magnitude of each sample, make the others zero."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def forward(self, z: Tensor) -> Tensor:
        """Map (n, d) to (n, d)."""
        return z * self._mask(z.abs())

    def proximal(self, anchor: Tensor, target: Tensor, ratio: float) -> Tensor:
        """Minimise over which entries are kept and over their values; then entries that are not to be kept but are
        larger than a kept one shrink to the smallest kept one. Exact where none has to; a sample that stays cheaper,
        stays.

        Entry i, kept, is best at ``(anchor + ratio target) / (1 + ratio)`` and costs ``ratio/(1 + ratio) (anchor -
        target)^2``; not kept, it stays and costs ``ratio target^2``. The k entries that gain most are kept.
        """
        kept = (anchor + ratio * target) / (1 + ratio)
        gain = target.square() - (anchor - target).square() / (1 + ratio)
        mask = self._mask(gain)
        smallest = torch.where(mask, kept.abs(), torch.inf).amin(1, keepdim=True)
        shrunk = anchor.sign() * torch.minimum(anchor.abs(), smallest * (1 - 1e-6))
        moved = torch.where(mask, kept, shrunk)
        cost, stay = (
            ratio * (self.forward(z) - target).square().sum(1, keepdim=True)
            + (z - anchor).square().sum(1, keepdim=True)
            for z in (moved, anchor)
        )
        return torch.where(cost <= stay, moved, anchor)

    def _mask(self, by: Tensor) -> Tensor:
        k = min(self.k, by.shape[1])
        return torch.zeros_like(by, dtype=torch.bool).scatter_(1, by.topk(k, dim=1).indices, True)
