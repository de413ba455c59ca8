"""A gated recurrent unit (Cho et al. 2014, arXiv:1406.1078) of two linear maps."""

import torch
from torch import Tensor, nn


class GatedUnit(nn.Module):
    """Moves a state h by an input x: z, r = sigmoid(W [x, h]); h <- (1 - z) h + z tanh(V [x, r h])."""

    def __init__(self, width: int) -> None:
        """Inputs and states have this width."""
        super().__init__()
        self.gates, self.candidate = nn.Linear(2 * width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """From an input and a state, both (..., width), to a state."""
        z, r = self.gates(torch.cat([x, h], -1)).sigmoid().chunk(2, -1)
        moved: Tensor = h + z * (self.candidate(torch.cat([x, r * h], -1)).tanh() - h)
        return moved
