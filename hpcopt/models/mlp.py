"""A multi-layer perceptron."""

import itertools
import math
from typing import Literal

from pydantic import Field, PositiveInt
from torch import nn

from hpcopt.models.config import ImageModelConfig
from hpcopt.models.nondifferentiable import Sign

_ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "sign": Sign}


class MlpConfig(ImageModelConfig):
    """Fully connected layers with one activation between them."""

    name: Literal["mlp"] = "mlp"
    hidden: tuple[PositiveInt, ...] = Field((128,), description="widths of the hidden layers")
    activation: Literal["relu", "tanh", "sigmoid", "sign"] = Field("relu", description="between the layers")

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Sequential:
        """Make the network from inputs of shape (n, *shape) to logits (n, classes)."""
        widths = [math.prod(shape), *self.hidden, classes]
        layers: list[nn.Module] = [nn.Flatten()]
        for fan_in, fan_out in itertools.pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out), _ACTIVATIONS[self.activation]()]
        return nn.Sequential(*layers[:-1])
