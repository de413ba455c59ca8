"""Networks that compute in few bits: quantizers of gradients, layers, and the rewrite that puts them in."""

from typing import TYPE_CHECKING

from hpcopt.lazily import lazily

if TYPE_CHECKING:
    from hpcopt.lowbit.layers import added_variance
    from hpcopt.lowbit.quantized_model import QuantizedConfig
    from hpcopt.lowbit.quantizers import Grid, grid, quantized, rounded
    from hpcopt.lowbit.reflection import GroupedReflection

__all__ = ["Grid", "GroupedReflection", "QuantizedConfig", "added_variance", "grid", "quantized", "rounded"]

__getattr__ = lazily(
    __name__,
    {
        "Grid": "quantizers",
        "GroupedReflection": "reflection",
        "QuantizedConfig": "quantized_model",
        "added_variance": "layers",
        "grid": "quantizers",
        "quantized": "quantizers",
        "rounded": "quantizers",
    },
)
