"""SimBa: residual blocks whose networks may grow (Lee et al. 2024, arXiv:2410.09754).

    x = W_0 s,   x = x + W_2 relu(W_1 norm(x))  for each block,   features = norm(x)

with LayerNorms and blocks of four times the width inside. The input is an observation that a running norm has scaled
(``hpcopt.models.control.running_norm``), beside the action in a critic.
"""

from typing import Literal

from pydantic import Field, PositiveInt
from torch import Tensor, nn

from hpcopt.models.control.body import Body, BodyConfig
from hpcopt.models.control.stacked import StackedLinear, linear, norm

EXPANSION = 4


class SimbaBodyConfig(BodyConfig):
    """Residual blocks with LayerNorms (SimBa). The paper has 1 block of width 128 in actors and 2 of 512 in critics,
    and scaled observations: ``normalise = true`` in the features' section.
    """

    name: Literal["simba"] = "simba"
    width: PositiveInt = Field(128, description="of the residual stream")
    depth: PositiveInt = Field(1, description="residual blocks")

    def build(self, inputs: int, ensemble: int | None = None) -> "Simba":
        """Make the network from (n, inputs) to (n, width)."""
        return Simba(inputs, self.width, self.depth, ensemble)


class Simba(Body):
    """The network. The first layer begins orthogonal, those of blocks as He et al. 2015 draw them."""

    def __init__(self, inputs: int, width: int, depth: int, ensemble: int | None = None) -> None:
        super().__init__()
        self.width = width
        self.first = linear(inputs, width, ensemble)
        self.blocks = nn.ModuleList(_Block(width, ensemble) for _ in range(depth))
        self.norm = norm(width, ensemble)
        for weight in _weights(self.first):
            nn.init.orthogonal_(weight)
        nn.init.zeros_(self.first.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        features: Tensor = self.norm(x)
        return features


class _Block(nn.Module):
    def __init__(self, width: int, ensemble: int | None) -> None:
        super().__init__()
        self.norm = norm(width, ensemble)
        self.wide = linear(width, EXPANSION * width, ensemble)
        self.activation = nn.ReLU()
        self.narrow = linear(EXPANSION * width, width, ensemble)
        for layer in (self.wide, self.narrow):
            for weight in _weights(layer):
                nn.init.kaiming_normal_(weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = self.narrow(self.activation(self.wide(self.norm(x))))
        return x + added


def _weights(layer: nn.Linear | StackedLinear) -> list[Tensor]:
    """The matrices of a layer as torch's initialisers take them, (outputs, inputs); they are the layer's own memory."""
    return list(layer.weight.data.mT) if isinstance(layer, StackedLinear) else [layer.weight.data]
