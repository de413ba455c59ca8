"""The deductron: a recurrent network of logic gates that deduces (Rychlik 2018, arXiv:1806.09038).

Of frames x_t, with M units of memory z_t in [0, 1], z_0 = 0::

    h_t = gate(W1 x_t + B1)  in [0, 1]^2M        its halves are left_t and right_t
    z_t = left_{t-1} right_{t-1} z_{t-1} + 1 - left_{t-1}
    y_t = 1 - gate(W2 z_t + B2)

Left at 0 sets a unit to 1; left at 1 lets right decide: 1 keeps the unit, 0 clears it. A hard gate is 1 above a half; a
soft one, ``sigmoid(slope (a - 1/2))``, tends to it as its slope grows. A hard deductron has weights of {-1, 0, 1} and
biases of {-1, 0, 1, 2}, can make and undo a move among them (``hpcopt.shapes.Discrete``), and has the derivative of the
soft one, straight through.
"""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from hpcopt.models.config import FrameModelConfig
from hpcopt.models.frame_logic import FrameLogic

HALF = 0.5
MOST_KNOWN = 4096  # losses
Loss = Callable[[nn.Module, Any], Tensor]
WEIGHTS, BIASES = range(-1, 2), range(-1, 3)


class DeductronConfig(FrameModelConfig):
    """A deductron."""

    name: Literal["deductron"] = "deductron"
    units: int = Field(4, ge=1, description="bits of memory, M")
    gates: Literal["soft", "hard"] = Field(
        "soft", description="soft: real weights, for gradients; hard: weights of {-1, 0, 1}, for annealing"
    )
    slope: float = Field(1.0, gt=0, description="of soft gates, and of the derivative of hard ones")
    handcrafted: bool = Field(
        False, description="begin with weights that decode every W-string without an error, once gates are hard enough"
    )

    @model_validator(mode="after")
    def _has_the_units_of_the_handcrafted(self) -> "DeductronConfig":
        if self.handcrafted and self.units != 4:
            raise ValueError(f"the handcrafted deductron has units = 4, not {self.units}")
        return self

    def build(self, inputs: int, outputs: int) -> "Deductron":
        """Make the network.

        Raises:
            ValueError: it is to be the handcrafted one, which has 6 inputs and 2 outputs.
        """
        network = (Deductron if self.gates == "soft" else HardDeductron)(inputs, outputs, self.units, self.slope)
        return handcraft(network) if self.handcrafted else network


class Deductron(nn.Module):
    """With soft gates. ``gates`` is W1 and B1, shape (2M, inputs); ``readout`` is W2 and B2, shape (outputs, M)."""

    def __init__(self, inputs: int, outputs: int, units: int, slope: float = 1.0) -> None:
        super().__init__()
        self.gates, self.readout, self.slope = nn.Linear(inputs, 2 * units), nn.Linear(units, outputs), slope
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all from a Gaussian of deviation 1."""
        for p in self.parameters():
            nn.init.normal_(p)

    def forward(self, frames: Tensor) -> Tensor:
        """From frames, (n, T, inputs), to outputs in [0, 1], (n, T, outputs)."""
        left, right = self.gate(self.gates(frames)).chunk(2, -1)
        y: Tensor = 1 - self.gate(self.readout(self.memory(left, right)))
        return y

    def gate(self, a: Tensor) -> Tensor:
        """Of any shape."""
        return torch.sigmoid(self.slope * (a - HALF))

    def memory(self, left: Tensor, right: Tensor) -> Tensor:
        """z of all times from the gates of all times, each (n, T, M)."""
        return _delayed(scan(left * right, 1 - left))


class HardDeductron(Deductron):
    """With hard gates and small integers for parameters."""

    def __init__(self, inputs: int, outputs: int, units: int, slope: float = 1.0) -> None:
        super().__init__(inputs, outputs, units, slope)
        self._changed = 0, 0, 0.0  # of the last move: the parameter, the place in it, and what was there
        self._batch: Any = None  # that it walks over, and what is known of it
        self._logic: FrameLogic | None = None
        self._energies: dict[bytes, float] = {}

    @property
    def _all(self) -> tuple[Tensor, ...]:
        return self.gates.weight, self.gates.bias, self.readout.weight, self.readout.bias

    def reset_parameters(self) -> None:
        """Draw all uniformly from what they may be."""
        for p in self.parameters():
            allowed = _allowed(p)
            with torch.no_grad():
                p.copy_(torch.randint(allowed.start, allowed.stop, p.shape))

    def forward(self, frames: Tensor) -> Tensor:
        """As a soft one's. Of the frames of a walk, only what a move has changed is worked out."""
        if self._batch is None or torch.is_grad_enabled():
            return super().forward(frames)
        if self._logic is None:
            self._logic = FrameLogic(frames)
        if self._logic.frames is not frames:
            return super().forward(frames)
        w2, b2 = self.readout.weight.detach().numpy(), self.readout.bias.detach().numpy()
        gates = zip(*np.split(self._said(self._logic), 2), strict=True)
        z = np.stack([self._logic.memory(left, right) for left, right in gates])
        y = (np.tensordot(w2, z, 1) + b2[:, None, None] <= HALF).astype(np.float32)
        return torch.from_numpy(y).movedim(0, -1)

    def _said(self, logic: FrameLogic) -> np.ndarray:
        """By the gates of distinct frames, (2M, D), bool."""
        w1, b1 = self.gates.weight.detach().numpy(), self.gates.bias.detach().numpy()
        h: np.ndarray = w1 @ logic.distinct.T + b1[:, None] > HALF
        return h

    def gate(self, a: Tensor) -> Tensor:
        hard = (a > HALF).to(a.dtype)
        if not a.requires_grad:
            return hard
        soft = super().gate(a)
        return soft + (hard - soft).detach()

    def propose(self, draw: np.random.Generator) -> None:
        """Give one number, drawn uniformly, another value, drawn uniformly of those that it may have."""
        parameters = self._all
        number, place = 0, int(draw.integers(sum(p.numel() for p in parameters)))
        while place >= parameters[number].numel():
            place, number = place - parameters[number].numel(), number + 1
        values, allowed = parameters[number].detach().view(-1), _allowed(parameters[number])
        before = int(values[place])
        self._changed = number, place, before
        values[place] = allowed[(before - allowed.start + int(draw.integers(1, len(allowed)))) % len(allowed)]

    def undo(self) -> None:
        """Take the last move back."""
        number, place, before = self._changed
        self._all[number].detach().view(-1)[place] = before

    @torch.no_grad()
    def energy(self, loss: Loss, batch: Any) -> float:
        """The loss of a batch, which must not change, and has one tensor of frames. In main memory it is looked up
        where gates that say the same, and the same readout, have had it.
        """
        if not self.gates.weight.is_cpu:
            return float(loss(self, batch))
        if batch is not self._batch:
            self._batch, self._logic, self._energies = batch, None, {}
        if self._logic is None:  # the loss shows it the frames
            return float(loss(self, batch))
        function = self._function(self._logic)
        if function not in self._energies:
            if len(self._energies) == MOST_KNOWN:
                self._energies.clear()
            self._energies[function] = float(loss(self, batch))
        return self._energies[function]

    def _function(self, logic: FrameLogic) -> bytes:
        """What decides the loss."""
        w2, b2 = self.readout.weight.detach().numpy(), self.readout.bias.detach().numpy()
        return self._said(logic).tobytes() + w2.tobytes() + b2.tobytes()


def scan(a: Tensor, b: Tensor) -> Tensor:
    """z of ``z_t = a_t z_{t-1} + b_t`` from z before the first = 0, all (n, T, M), in log2 T rounds.

    >>> scan(torch.tensor([[[9.0], [0.5], [1.0]]]), torch.tensor([[[1.0], [0.0], [2.0]]])).flatten().tolist()
    [1.0, 0.5, 2.5]
    """
    reach = 1
    while reach < a.shape[1]:
        b = torch.cat([b[:, :reach], b[:, reach:] + a[:, reach:] * b[:, :-reach]], 1)
        a = torch.cat([a[:, :reach], a[:, reach:] * a[:, :-reach]], 1)
        reach *= 2
    return b


def handcraft(network: Deductron) -> Deductron:
    """Give a deductron of 4 units the weights that Rychlik found by hand for the W-language, and give it back. With
    hard gates it makes no error on any string; with soft ones of slope 10 none up to 8 letters, and each output is
    within 0.2 of its target.

    Raises:
        ValueError: it is of another size.
    """
    shapes = [tuple(p.shape) for p in network.parameters()]
    if shapes != [(8, 6), (8,), (2, 4), (2,)]:
        raise ValueError(f"the handcrafted deductron has 6 inputs, 4 units and 2 outputs; this one has {shapes}")
    left = [[0, 1, 1, 0, 0, -1], [1, 1, 0, -1, 0, 0], [1, 0, 0, -1, 0, 0], [0, 0, 1, 0, 0, -1]]
    right = [[1, 1, 0, -1, 0, 0], [0, 1, 1, 0, 0, -1], [-1, 0, 0, 0, 0, 0], [0, 0, -1, 0, 0, 0]]
    with torch.no_grad():
        network.gates.weight.copy_(torch.tensor(left + right))
        network.gates.bias.fill_(1)
        network.readout.weight.copy_(torch.tensor([[-1, 0, -1, 0], [0, -1, 0, -1]]))
        network.readout.bias.fill_(2)
    return network


def _allowed(parameter: Tensor) -> range:
    return WEIGHTS if parameter.ndim == 2 else BIASES


def _delayed(z: Tensor) -> Tensor:
    """What was known before each frame: 0 at the first."""
    return nn.functional.pad(z[:, :-1], (0, 0, 1, 0))
