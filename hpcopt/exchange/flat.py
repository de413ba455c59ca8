"""Gradients as views of one flat buffer: a backward pass writes straight into what a collective sends."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class FlatGradients:
    """One buffer for each dtype among the parameters, in which every ``parameter.grad`` is a view.

    Autograd adds to a gradient that is already there, so accumulation over micro-batches needs nothing more. The
    gradient of a parameter that a step does not use is zero.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._views: list[tuple[nn.Parameter, Tensor]] = []
        self.buffers: list[Tensor] = []
        for dtype in dict.fromkeys(p.dtype for p in parameters):
            mine = [p for p in parameters if p.dtype == dtype]
            buffer = torch.zeros(sum(p.numel() for p in mine), dtype=dtype)
            pieces = torch.split(buffer, [p.numel() for p in mine])
            for p, piece in zip(mine, pieces, strict=True):
                self._views.append((p, piece.view_as(p)))
            self.buffers.append(buffer)

    def zero(self) -> None:
        """Make every gradient zero, and a view of its buffer again if another tensor has taken its place."""
        for buffer in self.buffers:
            buffer.zero_()
        for p, view in self._views:
            p.grad = view

    def norm(self) -> Tensor:
        """Euclidean norm over all gradients, as a float64 scalar."""
        norms = [torch.linalg.vector_norm(buffer, dtype=torch.float64) for buffer in self.buffers]
        return torch.stack(norms).square().sum().sqrt()

    def scale(self, factor: float) -> None:
        """Multiply every gradient."""
        for buffer in self.buffers:
            buffer.mul_(factor)
