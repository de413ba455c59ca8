"""Levenberg-Marquardt damping (Martens and Grosse 2015, arXiv:1503.05671, section 6.5).

A step delta, as the inner optimizer made it, should change the loss h by what the quadratic model says::

    rho = (h(theta + delta) - h(theta)) / M(delta),   M(delta) = g^T delta + 1/2 sum over layers <G Delta A, Delta>

with the gradient g and the factors in use. M has no damping in it, unlike the paper's, so that rho is 1 wherever the
loss is the model. rho > 3/4 lowers the damping by omega^T, after T steps, and rho < 1/4 raises it as much; so does a
step that M itself says leads up, or a loss that is not finite. Parameters of layers unknown to K-FAC have no curvature
in M.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hpcopt.comm.world import World
from hpcopt.pinned import numbers
from hpcopt.solvers.kaisa import symmetric
from hpcopt.solvers.kaisa.averages import Average
from hpcopt.solvers.kaisa.inverse import apply_left
from hpcopt.solvers.kaisa.layers.layer import Layer


@dataclass(frozen=True)
class Trial:
    """Where a step began: parameters, and the loss's gradient by them, copies."""

    parameters: dict[nn.Parameter, Tensor]
    gradients: dict[nn.Parameter, Tensor]

    @classmethod
    def begin(cls, parameters: Sequence[nn.Parameter]) -> "Trial":
        """Remember parameters that have gradients, before either changes."""
        used = [(p, p.grad) for p in parameters if p.grad is not None]
        return cls({p: p.detach().clone() for p, _ in used}, {p: g.detach().clone() for p, g in used})

    def slope(self) -> float:
        """g^T delta."""
        products = [
            torch.sum(g.double() * (p.detach() - self.parameters[p]).double()) for p, g in self.gradients.items()
        ]
        return math.fsum(numbers(products))

    def curvature(self, layers: Sequence[Layer], averages: Mapping[int, Average]) -> float:
        """The sum of <G Delta A, Delta> over the layers whose factors are here."""
        products = []
        for i, average in averages.items():
            layer = layers[i]
            if average.updates and all(p in self.parameters for p in layer.parameters()):
                delta = layer.matrix([p.detach() - self.parameters[p] for p in layer.parameters()]).to(layer.dtype)
                products.append(torch.sum(_times_g(layer, average, delta) * _times_a(layer, average, delta)))
        return float(sum(numbers(products)))

    def ratio(
        self, layers: Sequence[Layer], averages: Mapping[int, Average], world: World, before: float, after: float
    ) -> float:
        """rho, of a loss that is the sum of the ranks' own. Collective: one all-reduce of four numbers.

        Args:
            layers, averages: of K-FAC; each layer's factors are on one rank.
            world: the ranks.
            before, after: this rank's summand of the loss before the step and after it.
        """
        slope = self.slope() / world.size  # the same on all ranks, but the sum is so to the bit
        sums = torch.tensor([slope, self.curvature(layers, averages), before, after], dtype=torch.float64)
        slope, curvature, before, after = world.all_reduce(sums).tolist()
        model = slope + curvature / 2
        return (after - before) / model if model < 0 else -math.inf


def adapted(damping: float, ratio: float, factor: float, bounds: tuple[float, float]) -> float:
    """The next damping: times ``factor`` < 1 where the model can be trusted, divided by it where it cannot."""
    if ratio > 0.75:
        damping *= factor
    elif not ratio >= 0.25:  # so also where it is no number
        damping /= factor
    return min(max(damping, bounds[0]), bounds[1])


def _times_g(layer: Layer, average: Average, delta: Tensor) -> Tensor:
    return apply_left(layer.g, delta, lambda x: symmetric.multiply(average.g.to(x.dtype), x))


def _times_a(layer: Layer, average: Average, delta: Tensor) -> Tensor:
    if not layer.a.blocks:
        return delta
    turned = delta.transpose(1, 2)
    return apply_left(layer.a, turned, lambda x: symmetric.multiply(average.a.to(x.dtype), x)).transpose(1, 2)
