"""Which parameters weight decay is for."""

from collections.abc import Iterable
from typing import Any

from torch import nn


def decay_matrices_only(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups. Decaying biases and norm scales only hurts; every published recipe leaves them out."""
    matrices: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for p in parameters:
        (matrices if p.dim() >= 2 else vectors).append(p)
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
