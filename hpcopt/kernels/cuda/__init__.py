"""The codecs' inner loops on a GPU: Triton where a loop must be one sweep of memory, plain torch where that is as good.

They write the bytes that the loops of ``hpcopt.kernels`` write. For that, random numbers are a hash of (seed, index) in
uint32, maxima depend on no order, sums run in the order of the CPU (64 lanes, then by halves), divisions are rounded to
the nearest and no multiplication is fused with an addition.

Triton loads at its first use: write ``from hpcopt.kernels import cuda`` and ``cuda.levels.encode(...)``. With
``TRITON_INTERPRET=1`` the loops run on CPU tensors, slowly, which is how they are tested without a card.
"""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hpcopt.kernels.cuda import bits, levels, powers, sampling, select, sums

__all__ = ["bits", "levels", "powers", "sampling", "select", "sums"]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
