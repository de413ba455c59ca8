"""Where the units of hidden layers lie in a network's parameters: what a solver must know that trains some of them."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import nn

from hpcopt.errors import JobError


class Axis(NamedTuple):
    """A dimension of a parameter along which the units of a hidden layer lie.

    Attributes:
        layer: number of the hidden layer.
        each: values of one unit, side by side: of a head of attention, its channels.
    """

    layer: int
    each: int = 1


Axes = Mapping[str, tuple[Axis | None, ...]]  # by name of a parameter; None: a dimension that is not split
_BY_VALUE = (nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.Dropout, nn.Flatten, nn.Identity)


def hidden_axes(model: nn.Module) -> Axes:
    """The hidden axes of each parameter: what the network's own ``hidden_axes()`` says, or those of a chain of dense
    layers. Inputs and outputs are not hidden.

    Raises:
        JobError: on all ranks: the network is neither.
    """
    own = getattr(model, "hidden_axes", None)
    if callable(own):
        axes: Axes = own()
        return axes
    layers = list(model) if isinstance(model, nn.Sequential) else []
    dense = [(str(at), layer) for at, layer in enumerate(layers) if isinstance(layer, nn.Linear)]
    if not dense or not all(isinstance(layer, (nn.Linear, *_BY_VALUE)) for layer in layers):
        raise JobError(
            f"{type(model).__name__} does not say where its hidden units lie: give it hidden_axes(), as "
            "hpcopt.models.graph's networks have it, or take a chain of dense layers"
        ).everywhere()
    axes = {}
    for place, (name, layer) in enumerate(dense):
        inside = Axis(place - 1) if place else None
        outside = Axis(place) if place < len(dense) - 1 else None
        axes[f"{name}.weight"] = (outside, inside)
        if layer.bias is not None:
            axes[f"{name}.bias"] = (outside,)
    return axes


def widths(model: nn.Module) -> list[int]:
    """Units of each hidden layer.

    Raises:
        JobError: on all ranks: parameters do not agree on a layer's.
    """
    found: dict[int, int] = {}
    shapes = {name: p.shape for name, p in model.named_parameters()}
    for name, axes in hidden_axes(model).items():
        for size, axis in zip(shapes[name], axes, strict=True):
            if axis is not None and found.setdefault(axis.layer, size // axis.each) * axis.each != size:
                raise JobError(
                    f"{name} has {size} values along hidden layer {axis.layer}, of {found[axis.layer]} units of "
                    f"{axis.each}"
                ).everywhere()
    return [found[layer] for layer in sorted(found)]
