"""Parameter groups: which of them weight decay is for, and each one's learning rate."""

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer

FACTOR = "lr_factor"  # of a group: its learning rate over the optimizer's


def decay_matrices_only(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups. Decaying biases and norm scales only hurts; every published recipe leaves them out."""
    matrices: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for p in parameters:
        (matrices if p.dim() >= 2 else vectors).append(p)
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    """Set every group's learning rate for the coming step: its factor times the optimizer's."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get(FACTOR, 1.0)


def scale_learning_rate(optimizer: Optimizer, factor: float) -> Optimizer:
    """Let every group's learning rate be a multiple of what it would be; give the optimizer."""
    for group in optimizer.param_groups:
        group[FACTOR] = group.get(FACTOR, 1.0) * factor
    return optimizer
