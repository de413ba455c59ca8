"""How much of a network is in use: the effective rank of its features, and the share of its units that lie dormant.

Networks of reinforcement learning lose both while they train (Kumar et al. 2020, arXiv:2010.14498; Sokar et al. 2023,
arXiv:2302.12902), the more so the more updates they get from each transition.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hpcopt.models.control.body import ACTIVATIONS, Body

ENERGY = 0.99
DORMANT = 0.025  # the paper's tau


@dataclass(frozen=True)
class UnitStatistics:
    """Of one body on one batch.

    Attributes:
        effective_rank: of its features; NaN where they are not finite.
        dormant_share: of all its units, from 0 to 1.
    """

    effective_rank: float
    dormant_share: float


@torch.no_grad()
def unit_statistics(body: Body, x: Tensor) -> UnitStatistics:
    """Both statistics of a body on inputs, (n, inputs); means over an ensemble."""
    activations: list[Tensor] = []
    kinds = tuple(ACTIVATIONS.values())
    hooks = [
        module.register_forward_hook(lambda _module, _inputs, output: activations.append(output))
        for module in body.modules()
        if isinstance(module, kinds)
    ]
    try:
        features = body(x)
    finally:
        for hook in hooks:
            hook.remove()
    ranks = [effective_rank(each) for each in features.reshape(-1, *features.shape[-2:])]
    return UnitStatistics(sum(ranks) / len(ranks), dormant_share(activations))


@torch.no_grad()
def effective_rank(features: Tensor, energy: float = ENERGY) -> float:
    """The fewest singular values of features, (n, width), whose sum is at least so large a share of all of theirs
    (arXiv:2010.14498, section 3, where ``energy`` is 1 - delta). 0 for features of zero; NaN where one is not finite.
    """
    if not bool(features.isfinite().all()):
        return float("nan")
    values = torch.linalg.svdvals(features.to(torch.float64))
    total = values.sum()
    return float((values.cumsum(0) < energy * total).sum() + 1) if total > 0 else 0.0


@torch.no_grad()
def dormant_share(activations: Sequence[Tensor], tau: float = DORMANT) -> float:
    """The share of units whose mean magnitude is at most ``tau`` times their layer's mean (arXiv:2302.12902,
    definition 3.1).

    Args:
        activations: of each layer, (n, units), or (E, n, units) for layers of an ensemble.
    """
    dormant = units = 0
    for layer in activations:
        magnitudes = layer.abs().mean(-2)
        dormant += int((magnitudes <= tau * magnitudes.mean(-1, keepdim=True)).sum())
        units += magnitudes.numel()
    return dormant / units if units else 0.0
