"""OFENet: features that grow the input, learned by predicting what comes next (Ota et al. 2020, arXiv:2003.01629).

    z_s = tower(s),   z_sa = tower([z_s, a]),   loss = mean |W z_sa + b - s'|^2

A tower of L layers is dense: ``h_{k+1} = [h_k, act(norm(W_k h_k + b_k))]``, so it gives L * growth numbers more than it
takes. The losses of actor and critics see the towers with constant weights and with constant statistics.
"""

from typing import Any, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from hpcopt.models.control.body import ACTIVATIONS, Activation
from hpcopt.models.control.features import FeatureConfig, Features


class OfeNetConfig(FeatureConfig):
    """Dense towers that learn to predict the next observation (OFENet). The paper has 6 layers of 40 units, or 8 of 30
    for larger bodies.
    """

    name: Literal["ofenet"] = "ofenet"
    layers: PositiveInt = Field(6, description="of each of the two towers")
    growth: PositiveInt = Field(40, description="units that a layer adds")
    activation: Activation = Field("silu", description="after each layer's norm")
    norm: Literal["layer", "batch", "none"] = Field(
        "layer", description="of each layer; batch, the paper's, keeps statistics of what each rank learned from"
    )

    def build(self, observations: int, actions: int) -> "OfeNet":
        """Make them: of observations, z_s has layers * growth numbers more; z_sa as many more than z_s and action."""
        return OfeNet(self, observations, actions)


class OfeNet(Features):
    """The features. All of their parameters are for an optimizer of their own, on ``loss``."""

    def __init__(self, config: OfeNetConfig, observations: int, actions: int) -> None:
        super().__init__(observations, config.normalise)
        self.on_observations = DenseTower(config, observations)
        self.on_actions = DenseTower(config, self.on_observations.width + actions)
        self.widths = self.on_observations.width, self.on_actions.width
        self.prediction = nn.Linear(self.on_actions.width, observations)

    def observe(self, s: Tensor) -> Tensor:
        z_s: Tensor = self.on_observations(self.scaled(s), learning=False)
        return z_s

    def act(self, z_s: Tensor, a: Tensor) -> Tensor:
        z_sa: Tensor = self.on_actions(torch.cat([z_s, a], -1), learning=False)
        return z_sa

    def loss(self, s: Tensor, a: Tensor, next_s: Tensor) -> Tensor:
        """The squared error of the predicted next observations, a mean over all their numbers."""
        z_s = self.on_observations(self.scaled(s), learning=True)
        z_sa = self.on_actions(torch.cat([z_s, a], -1), learning=True)
        return functional.mse_loss(self.prediction(z_sa), self.scaled(next_s))

    @torch.no_grad()
    def prediction_error(self, s: Tensor, a: Tensor, next_s: Tensor) -> Tensor:
        """The loss of the features as actor and critics see them: nothing learns from these transitions."""
        predicted = self.prediction(self.act(self.observe(s), a))
        return functional.mse_loss(predicted, self.scaled(next_s))


class DenseTower(nn.Module):
    """Layers that add to what they take.

    Attributes:
        width: numbers that it gives.
    """

    def __init__(self, config: OfeNetConfig, inputs: int) -> None:
        super().__init__()
        self.width = inputs + config.layers * config.growth
        fan_ins = range(inputs, self.width, config.growth)
        kind = {"layer": nn.LayerNorm, "batch": nn.BatchNorm1d, "none": nn.Identity}[config.norm]
        self.layers = nn.ModuleList(nn.Linear(fan_in, config.growth) for fan_in in fan_ins)
        self.norms = nn.ModuleList(kind(config.growth) for _ in fan_ins)
        self.activation = ACTIVATIONS[config.activation]()

    def forward(self, x: Tensor, learning: bool) -> Tensor:
        """From (n, inputs) to (n, width). Unless it learns, no gradient reaches a weight and no statistic moves."""
        for layer, norm in zip(self.layers, self.norms, strict=True):
            made = _normed(functional.linear(x, *_weights(layer, learning)), norm, learning)
            x = torch.cat([x, self.activation(made)], -1)
        return x


def _normed(x: Tensor, norm: nn.Module, learning: bool) -> Tensor:
    if isinstance(norm, nn.LayerNorm):
        return functional.layer_norm(x, x.shape[-1:], *_weights(norm, learning))
    if isinstance(norm, nn.BatchNorm1d):
        return functional.batch_norm(
            x, norm.running_mean, norm.running_var, *_weights(norm, learning), training=learning
        )
    return x


def _weights(layer: Any, learning: bool) -> tuple[Tensor, Tensor]:
    """Weight and bias of a linear layer or a norm, as constants unless it learns."""
    return (layer.weight, layer.bias) if learning else (layer.weight.detach(), layer.bias.detach())
