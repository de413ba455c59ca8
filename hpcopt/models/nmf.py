"""Non-negative matrix factorisation as a layer: features become their codes over a basis of non-negative parts.

Features H (n, d) >= 0 are written as S B with codes S (n, r) >= 0 and a basis B (r, d) >= 0 whose rows are no longer
than 1. The codes of a sample are ``argmin_S |h - S B|^2`` over S >= 0: they ask for no label.
"""

import itertools
import math
from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from hpcopt.models.config import ImageModelConfig


class Nmf(nn.Module):
    """Layer from features (n, d) to codes (n, r), by projected gradient steps. Non-negative by construction; no
    gradient passes it, and none reaches its basis.

    Attributes:
        basis: B, shape (r, d), a buffer.
    """

    basis: Tensor

    def __init__(self, features: int, factors: int, steps: int = 50) -> None:
        super().__init__()
        self.steps = steps
        start = torch.rand(factors, features)
        self.register_buffer("basis", start / torch.linalg.vector_norm(start, dim=1, keepdim=True))

    @torch.no_grad()
    def forward(self, h: Tensor) -> Tensor:
        """Codes of features, of shape (n, r)."""
        return codes(h, self.basis, self.steps)

    @torch.no_grad()
    def proximal(self, anchor: Tensor, target: Tensor, ratio: float) -> Tensor:
        """Move features by what changes their codes, within the span of the basis: ``z = anchor + (S - S(anchor)) B``
        with S >= 0 the minimum of ``ratio/2 |S - target|^2 + 1/2 |(S - S(anchor)) B|^2``. A sample whose real codes
        then cost more than before stays.
        """
        start = self.forward(anchor)
        gram = self.basis @ self.basis.T
        length = 1 / (ratio + float(torch.linalg.matrix_norm(gram, 2)))
        s = start
        for _ in range(self.steps):
            s = (s - length * (ratio * (s - target) + (s - start) @ gram)).clamp_min(0)
        moved = (anchor + (s - start) @ self.basis).clamp_min(0)
        cost, stay = (
            ratio * (out - target).square().sum(1, keepdim=True) + (z - anchor).square().sum(1, keepdim=True)
            for z, out in ((moved, self.forward(moved)), (anchor, start))
        )
        return torch.where(cost <= stay, moved, anchor)


def codes(h: Tensor, basis: Tensor, steps: int, start: Tensor | None = None) -> Tensor:
    """Projected gradient steps on ``1/2 |h - S B|^2`` over S >= 0, none of which raises it.

    Args:
        h: features, shape (n, d).
        basis: B, shape (r, d).
        steps: how many.
        start: codes to start from, shape (n, r); by default zeros.
    """
    gram, right = basis @ basis.T, h @ basis.T
    length = 1 / float(torch.linalg.matrix_norm(gram, 2).clamp_min(1e-12))
    s = torch.zeros_like(right) if start is None else start
    for _ in range(steps):
        s = (s - length * (s @ gram - right)).clamp_min(0)
    return s


def update_basis(basis: Tensor, a: Tensor, b: Tensor) -> None:
    """One HALS sweep: minimise ``1/2 tr(B^T A B) - tr(B^T C)`` over one row of the basis after the other, in place.

    With A = S^T S (r, r) and C = S^T H (r, d) that is 1/2 |H - S B|^2 but for a constant. In one row the function is a
    paraboloid of revolution, so that its minimum over non-negative rows no longer than 1 is the free minimum, clamped,
    then shortened (arXiv:0908.0050 for A and C as running sums).
    """
    for k in range(len(basis)):
        if a[k, k] <= 0:
            continue
        row = (basis[k] + (b[k] - a[k] @ basis) / a[k, k]).clamp_min(0)
        basis[k] = row / torch.linalg.vector_norm(row).clamp_min(1.0)


def factorize(h: Tensor, factors: int, sweeps: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Factorise features h (n, d) >= 0 from r of them, drawn at random, by alternating HALS sweeps.

    Returns:
        Codes (n, r) and basis (r, d).
    """
    alive = (h.square().sum(1) > 0).nonzero()[:, 0]
    chosen = alive[torch.randperm(len(alive), generator=generator)[:factors]]
    basis = torch.rand(factors, h.shape[1], generator=generator, dtype=h.dtype).to(h.device)
    basis[: len(chosen)] = h[chosen]
    basis /= torch.linalg.vector_norm(basis, dim=1, keepdim=True).clamp_min(1e-12)
    s = codes(h, basis, 20)
    for _ in range(sweeps):
        s = update_codes(s, h, basis)
        update_basis(basis, s.T @ s, s.T @ h)
    return s, basis


def update_codes(s: Tensor, h: Tensor, basis: Tensor) -> Tensor:
    """One HALS sweep over the columns of the codes."""
    gram, right, s = basis @ basis.T, h @ basis.T, s.clone()
    for k in range(s.shape[1]):
        if gram[k, k] > 0:
            s[:, k] = (s[:, k] + (right[:, k] - s @ gram[:, k]) / gram[k, k]).clamp_min(0)
    return s


class FactorMlpConfig(ImageModelConfig):
    """A perceptron whose last hidden features go through an NMF layer into the classifier."""

    name: Literal["factor_mlp"] = "factor_mlp"
    hidden: tuple[PositiveInt, ...] = Field((256, 128), min_length=1, description="widths of the hidden layers")
    factors: int = Field(20, ge=1, description="non-negative factors that the features are written in")
    code_steps: int = Field(50, ge=1, description="projected gradient steps to a sample's codes")

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Sequential:
        """Make the network from inputs of shape (n, *shape) to logits (n, classes)."""
        layers: list[nn.Module] = [nn.Flatten()]
        for fan_in, fan_out in itertools.pairwise([math.prod(shape), *self.hidden]):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
        return nn.Sequential(
            *layers, Nmf(self.hidden[-1], self.factors, self.code_steps), nn.Linear(self.factors, classes)
        )
