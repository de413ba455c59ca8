"""The rewrite that puts layers of few bits into any network."""

from fnmatch import fnmatchcase
from typing import Literal

from pydantic import Field
from torch import nn

from hpcopt.lowbit.layers import Bits, QuantizedConv2d, QuantizedLayer, QuantizedLinear
from hpcopt.models.rewrite import Rewrite


class QuantizedConfig(Rewrite):
    """Products of linear and convolutional layers take few bits, forward and backward; simulated in floating point."""

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
        """Put quantized layers in the place of ``torch.nn.Linear`` and ``torch.nn.Conv2d``, with their parameters.

        Raises:
            ValueError: no layer is left to be replaced, or a pattern of ``skip`` matches none.
        """
        bits = Bits(self.forward_bits, None if self.gradient == "exact" else self.gradient, self.bits)
        new: dict[nn.Module, QuantizedLayer] = {}
        unused = set(self.skip)
        for name, layer in model.named_modules():
            if skipping := {pattern for pattern in self.skip if fnmatchcase(name, pattern)}:
                unused -= skipping
            elif type(layer) is nn.Linear:
                new[layer] = QuantizedLinear(layer, bits).train(layer.training)
            elif type(layer) is nn.Conv2d:
                new[layer] = QuantizedConv2d(layer, bits).train(layer.training)
        if not new:
            raise ValueError("the network has no torch.nn.Linear and no torch.nn.Conv2d that is not skipped")
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
