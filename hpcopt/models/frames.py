"""Plain networks from frames to outputs of each frame, to hold others against: a recurrent one, and one that remembers
nothing.
"""

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from hpcopt.models.config import FrameModelConfig


class TanhRnnConfig(FrameModelConfig):
    """Elman's recurrent network."""

    name: Literal["tanh_rnn"] = "tanh_rnn"
    units: int = Field(4, ge=1, description="width of the state")

    def build(self, inputs: int, outputs: int) -> "TanhRnn":
        """Make the network."""
        return TanhRnn(inputs, outputs, self.units)


class TanhRnn(nn.Module):
    """``h_t = tanh(W x_t + U h_{t-1} + b)``; the outputs are ``sigmoid(V h_t + c)``."""

    def __init__(self, inputs: int, outputs: int, units: int) -> None:
        super().__init__()
        self.cells = nn.RNN(inputs, units)
        self.readout = nn.Linear(units, outputs)

    def forward(self, frames: Tensor) -> Tensor:
        """From frames, (n, T, inputs), to outputs in [0, 1], (n, T, outputs)."""
        states, _ = self.cells(frames.transpose(0, 1))
        y: Tensor = self.readout(states).sigmoid().transpose(0, 1)
        return y


class FrameMlpConfig(FrameModelConfig):
    """Two layers on each frame by itself."""

    name: Literal["frame_mlp"] = "frame_mlp"
    hidden: int = Field(7, ge=1, description="width of the hidden layer")

    def build(self, inputs: int, outputs: int) -> nn.Sequential:
        """Make the network from frames, (n, T, inputs), to outputs in [0, 1], (n, T, outputs)."""
        return nn.Sequential(nn.Linear(inputs, self.hidden), nn.Tanh(), nn.Linear(self.hidden, outputs), nn.Sigmoid())
