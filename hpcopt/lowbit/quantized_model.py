"""The rewrite that puts layers of few bits into any network."""

from fnmatch import fnmatchcase
from typing import Literal

from pydantic import Field
from torch import nn

from hpcopt.lowbit.attention import QuantizedAttention, QuantizedMultiheadAttention
from hpcopt.lowbit.layers import QuantizedConv2d, QuantizedLayer, QuantizedLinear
from hpcopt.lowbit.products import Bits
from hpcopt.models.attention import DotProductAttention
from hpcopt.models.rewrite import Rewrite


class QuantizedConfig(Rewrite):
    """Products of linear and convolutional layers and of attention take few bits, forward and backward; simulated in
    floating point.
    """

    name: Literal["quantized"] = "quantized"
    forward_bits: int = Field(
        8, ge=2, le=8, description="of weights, each tensor on one grid, and of activations, each sample on one"
    )
    gradient: Literal["exact", "ptq", "psq", "bhq"] = Field(
        "bhq",
        description="what rounds output gradients: nothing; with one step for all; with one for each sample; or after "
        "samples were mixed",
    )
    bits: int = Field(5, ge=2, le=8, description="of output gradients where they make the gradient of a layer's input")
    skip: tuple[str, ...] = Field((), description="shell patterns of names of layers that stay as they are")

    def apply(self, model: nn.Module) -> nn.Module:
        """Put quantized layers in the place of those that compute products, with their parameters:
        ``torch.nn.Linear``, ``torch.nn.Conv2d``, ``torch.nn.MultiheadAttention`` and
        ``hpcopt.models.attention.DotProductAttention``.

        Raises:
            ValueError: no layer is left to be replaced, or a pattern of ``skip`` matches none.
        """
        bits = Bits(self.forward_bits, None if self.gradient == "exact" else self.gradient, self.bits)
        new: dict[nn.Module, QuantizedLayer] = {}
        unused = set(self.skip)
        for name, layer in model.named_modules():
            if skipping := {pattern for pattern in self.skip if fnmatchcase(name, pattern)}:
                unused -= skipping
            elif (quantized := _quantized(layer, bits)) is not None:
                new[layer] = quantized.train(layer.training)
        if not new:
            raise ValueError("the network has no torch.nn.Linear, Conv2d or MultiheadAttention that is not skipped")
        if unused:
            raise ValueError(f"skip: no layer is named {min(unused)}")
        for layer in model.modules():
            if isinstance(layer, nn.TransformerEncoderLayer):
                layer.activation_relu_or_gelu = 0  # else torch evaluates it by a kernel of its own, in float32
        if model in new:
            return new[model]
        for path, layer in list(model.named_modules(remove_duplicate=False)):
            if layer in new:
                parent, _, name = path.rpartition(".")
                setattr(model.get_submodule(parent), name, new[layer])
        return model

    def plan(self, model: nn.Module) -> str:
        """How many layers take few bits, and that this is simulated."""
        layers = sum(isinstance(layer, QuantizedLayer) for layer in model.modules())
        back = "exact gradients" if self.gradient == "exact" else f"gradients of {self.bits} bits by {self.gradient}"
        return (
            f"{layers} layers take {self.forward_bits} bits forward, {back}; simulated: integers are held, and "
            "multiplied, as floating-point numbers, which saves neither time nor memory"
        )


def _quantized(layer: nn.Module, bits: Bits) -> QuantizedLayer | None:
    """What stands for a layer in few bits; None if it stays."""
    if type(layer) is nn.Linear:
        return QuantizedLinear(layer, bits)
    if type(layer) is nn.Conv2d:
        return QuantizedConv2d(layer, bits)
    if type(layer) is DotProductAttention:
        return QuantizedAttention(layer, bits)
    if type(layer) is nn.MultiheadAttention and QuantizedMultiheadAttention.fits(layer):
        return QuantizedMultiheadAttention(layer, bits)
    return None
