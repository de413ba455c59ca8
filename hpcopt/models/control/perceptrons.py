"""Perceptrons as bodies: plain ones, and those whose layers hand on what came in.

The dense form (Ota, Jha, Kanezaki 2021, arXiv:2102.07920, after Huang et al. 2017, arXiv:1608.06993) is ::

    h_0 = x,   h_{k+1} = [act(W_k h_k + b_k), h_k]

so that wide and deep ones have short ways from every layer to the end.
"""

from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from hpcopt.models.control.body import ACTIVATIONS, Activation, Body, BodyConfig
from hpcopt.models.control.stacked import linear


class MlpBodyConfig(BodyConfig):
    """Fully connected layers of one width."""

    name: Literal["mlp"] = "mlp"
    width: PositiveInt = Field(256, description="units of a layer")
    depth: PositiveInt = Field(2, description="layers")
    activation: Activation = Field("relu", description="after each layer")

    def build(self, inputs: int, ensemble: int | None = None) -> "Perceptron":
        """Make the network from (n, inputs) to (n, width)."""
        return Perceptron(inputs, [self.width] * self.depth, self.activation, False, ensemble)


class DenseMlpBodyConfig(BodyConfig):
    """Fully connected layers, each of which hands on what came into it beside what it makes of it (MLP-DenseNet). The
    paper has 2 layers of 2,048 units.
    """

    name: Literal["dense_mlp"] = "dense_mlp"
    width: PositiveInt = Field(512, description="units that a layer adds")
    depth: PositiveInt = Field(2, description="layers")
    activation: Activation = Field("silu", description="after each layer")

    def build(self, inputs: int, ensemble: int | None = None) -> "Perceptron":
        """Make the network from (n, inputs) to (n, inputs + depth * width)."""
        return Perceptron(inputs, [self.width] * self.depth, self.activation, True, ensemble)


class Perceptron(Body):
    """The network.

    Args:
        units: of each layer.
        dense: whether layers hand on what came in, behind their own units.
    """

    def __init__(
        self, inputs: int, units: list[int], activation: Activation, dense: bool, ensemble: int | None = None
    ) -> None:
        super().__init__()
        self.dense, self.width = dense, inputs
        self.layers, self.activations = nn.ModuleList(), nn.ModuleList()
        for outputs in units:
            self.layers.append(linear(self.width, outputs, ensemble))
            self.activations.append(ACTIVATIONS[activation]())
            self.width = outputs + (self.width if dense else 0)

    def forward(self, x: Tensor) -> Tensor:
        for layer, activation in zip(self.layers, self.activations, strict=True):
            made = activation(layer(x))
            x = torch.cat([made, x.expand(*made.shape[:-1], -1)], -1) if self.dense else made
        return x
