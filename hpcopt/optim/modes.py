"""Optimizers that are evaluated at other parameters than those that they train (Schedule-Free: Defazio et al. 2024,
arXiv:2405.15682).

There and back by such an optimizer's own ``eval()`` and ``train()`` rounds. So the parameters that it trains are kept
meanwhile, in its state: no evaluation and no checkpoint changes a bit of the training.
"""

import torch
from torch.optim import Optimizer

from hpcopt.optim.several import has_modes

TRAINED = "trained"  # in a parameter's state, while the parameter is where it is evaluated


@torch.no_grad()
def to_evaluation(optimizer: Optimizer) -> None:
    """Move the parameters to where they are evaluated, and saved; those of most optimizers are there."""
    if not has_modes(optimizer) or not any(group.get("train_mode") for group in optimizer.param_groups):
        return
    for group in optimizer.param_groups:
        for p in group["params"]:
            optimizer.state[p][TRAINED] = p.detach().clone()
    optimizer.eval()  # type: ignore[attr-defined]


def is_aside(optimizer: Optimizer) -> bool:
    """Whether ``to_evaluation`` has moved the parameters."""
    return any(TRAINED in state for state in optimizer.state.values())


@torch.no_grad()
def to_training(optimizer: Optimizer) -> None:
    """Move the parameters to where they are trained, bit for bit."""
    if not has_modes(optimizer):
        return
    optimizer.train()  # type: ignore[attr-defined]
    for group in optimizer.param_groups:
        for p in group["params"]:
            if (trained := optimizer.state[p].pop(TRAINED, None)) is not None:
                p.copy_(trained)
