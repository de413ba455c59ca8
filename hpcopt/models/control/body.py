"""What actors and critics have below their heads."""

from abc import ABC, abstractmethod
from typing import Literal

from torch import Tensor, nn

from hpcopt.config import Choice

Activation = Literal["relu", "silu", "tanh", "elu", "gelu"]
ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "gelu": nn.GELU,
}


class Body(nn.Module, ABC):
    """A network from vectors to features, or an ensemble of E such networks.

    Attributes:
        width: features that it gives.
    """

    width: int

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """From (n, inputs) to (n, width). An ensemble gives (E, n, width), and takes (E, n, inputs), too."""


class BodyConfig(Choice, ABC):
    """The body of an actor or a critic: all of it but the last linear layer."""

    @abstractmethod
    def build(self, inputs: int, ensemble: int | None = None) -> Body:
        """Make the network; with ``ensemble``, so many of its kind in stacked tensors, each drawn for itself.

        Raises:
            ValueError: the network does not suit so many inputs; the message says why.
        """
