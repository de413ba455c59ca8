"""Muon: each matrix's momentum, orthogonalised, is its step (Jordan et al. 2024; Liu et al. 2025, arXiv:2502.16982).

    M <- momentum M + (1 - momentum) W,   P = scale * orthogonalized(M)

with Nesterov's form ``(1 - momentum) W + momentum M`` in M's place, if asked for. A step's size does not depend on the
gradient's. On many ranks each column keeps the momentum of its own layers and orthogonalises them, so that both fall
with the fraction; a convolution's kernel is one row for each output.
"""

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from hpcopt.config import Config
from hpcopt.solvers.kaisa.factors import Failures, Work
from hpcopt.solvers.kaisa.layers.layer import Layer
from hpcopt.solvers.kaisa.layers.matrix import Source
from hpcopt.solvers.kaisa.orthogonal import flops, orthogonalized
from hpcopt.solvers.kaisa.products import worked_in
from hpcopt.solvers.kaisa.rounds import rounds


class MuonSettings(Config):
    """Momentum, and the size of a step."""

    momentum: float = Field(0.9, ge=0, lt=1, description="decay of the gradients' average")
    nesterov: bool = Field(True, description="look one step of the average ahead")
    iterations: int = Field(5, ge=1, description="of Newton and Schulz")
    polynomials: Literal["jordan", "minimax"] = Field(
        "jordan", description="of the iterations: minimax ones get as far as jordan's in one fewer"
    )
    scale: Literal["adamw", "shape"] = Field(
        "adamw",
        description="of steps: adamw gives values the root mean square of AdamW's steps, so that its learning rate "
        "fits; shape is sqrt(max(1, outputs / inputs))",
    )


class Muon:
    """Carries the momentum; keeps nothing else."""

    source: Source = "nothing"
    natural: ClassVar[bool] = False
    whole: ClassVar[bool] = True
    scratch: Tensor | None = None

    def __init__(self, settings: MuonSettings, dtype: torch.dtype | None = None) -> None:
        """``dtype`` is that of the products; None: the layers' own."""
        self._settings, self._dtype = settings, dtype
        self._rounds = rounds(settings.polynomials, settings.iterations)

    def numel(self, layer: Layer) -> int:
        return 0

    def carried(self, layer: Layer) -> int:
        return layer.numel

    def working(self, layer: Layer) -> int:
        return 0

    def invert(self, work: Sequence[Work], failures: Failures) -> None:
        return

    def apply(self, layer: Layer, kept: Tensor, w: Tensor, damping: float, moments: Tensor) -> Tensor:
        s, momentum = self._settings, moments.view(w.shape)
        momentum.lerp_(w, 1 - s.momentum)
        ahead = w.lerp(momentum, s.momentum) if s.nesterov else momentum
        dtype = worked_in(self._dtype or w.dtype, w.device)
        step = orthogonalized(ahead.to(dtype), self._rounds).to(w.dtype)
        return torch.mul(step, self._scale(layer), out=w.new_empty(w.shape))  # in rows

    def leave(self, layer: Layer, kept: Tensor, moments: Tensor) -> None:
        return

    def enter(self, layer: Layer, kept: Tensor, moments: Tensor) -> None:
        return

    def refresh_flops(self, layer: Layer) -> float:
        return 0.0

    def step_flops(self, layer: Layer) -> float:
        return layer.batch * flops(layer.outputs, layer.inputs, self._settings.iterations)

    def _scale(self, layer: Layer) -> float:
        if self._settings.scale == "shape":
            return math.sqrt(max(1.0, layer.outputs / layer.inputs))
        return 0.2 * math.sqrt(max(layer.outputs, layer.inputs))
