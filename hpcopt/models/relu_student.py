"""ReLU layers whose last units are added up: the networks that teachers are, and that students of them learn to be.

With x in R^d and weights W_1 ... W_L, of k_l rows each (arXiv:1806.07808 and 1806.07863 have L = 1)::

    h_0 = x,   h_l = relu(W_l h_{l-1}),   y = sum_q h_L[q]

In the skip form each unit adds one coordinate of what comes in, W_l + I stands for W_l, and weights of zero are where
training begins: a network of identities. With all activations held as they are, y is linear in the weights of any one
layer, which ``held`` gives.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from hpcopt.models.config import VectorModelConfig


class ReluStudentConfig(VectorModelConfig):
    """ReLU layers without biases, whose last units are added up."""

    name: Literal["relu_student"] = "relu_student"
    hidden: tuple[PositiveInt, ...] = Field((5,), min_length=1, description="units of each layer")
    skip: bool = Field(False, description="units add a coordinate of what comes in; training begins at the identity")

    def build(self, inputs: int) -> "ReluStudent":
        """Make the network from (n, inputs) to (n,). Rows are Gaussian, of length 1 on average; zero in the skip form.

        Raises:
            ValueError: in the skip form, a layer has more units than what comes in has coordinates.
        """
        return ReluStudent(inputs, self.hidden, self.skip)


class ReluStudent(nn.Module):
    """The network.

    Attributes:
        layers: weights, (units, what comes in), without the identity of the skip form.
    """

    def __init__(self, inputs: int, hidden: Sequence[int], skip: bool = False) -> None:
        """Draw weights from torch's generator. Raises ValueError: the skip form with more units than come in."""
        super().__init__()
        sizes = list(zip([inputs, *hidden], hidden, strict=False))
        if skip and any(units > fan_in for fan_in, units in sizes):
            raise ValueError(f"a skip form of {inputs} inputs has at most {inputs} units, fewer in each layer")
        self.skip = skip
        self.layers = nn.ParameterList(
            torch.zeros(units, fan_in) if skip else torch.randn(units, fan_in) / fan_in**0.5 for fan_in, units in sizes
        )

    def totals(self) -> list[Tensor]:
        """What each layer multiplies by: its weights, with the identity in the skip form."""
        return [w + self.added(w) if self.skip else w for w in self.layers]

    def added(self, weights: Tensor) -> Tensor:
        """The identity that the skip form adds to a layer's weights; zeros in the other form."""
        shape = weights.shape
        return torch.eye(*shape).to(weights) if self.skip else weights.new_zeros(shape)

    def forward(self, x: Tensor) -> Tensor:
        """From (n, inputs) to (n,)."""
        for weights in self.totals():
            x = (x @ weights.T).relu()
        return x.sum(1)

    @torch.no_grad()
    def held(self, layer: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """The linear form of y in one layer's weights W while all activations are held: ``y_i = sum_q c_iq (W h_i)_q``.

        Returns:
            c, (n, units), and h, (n, what comes into the layer).
        """
        totals, coming, active = self.totals(), [x], list[Tensor]()
        for weights in totals:
            before = coming[-1] @ weights.T
            active.append((before > 0).to(x.dtype))
            coming.append(before * active[-1])
        c = active[-1]
        for above in range(len(totals) - 1, layer, -1):
            c = (c @ totals[above]) * active[above - 1]
        return c, coming[layer]
