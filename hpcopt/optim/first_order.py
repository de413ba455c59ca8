"""The first-order optimizers of torch, as sections of a job."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn

from hpcopt.config import Config


class SgdConfig(Config):
    """Stochastic gradient descent with momentum (torch.optim.SGD)."""

    name: Literal["sgd"] = "sgd"
    lr: float = Field(0.1, gt=0, description="learning rate at the top of the schedule")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum")
    nesterov: bool = Field(False, description="Nesterov's form of momentum")
    weight_decay: float = Field(0.0, ge=0, description="L2 penalty on weights of two or more dimensions")

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Make the optimizer of these parameters."""
        groups = _decay_matrices_only(parameters, self.weight_decay)
        return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=self.nesterov)


class AdamWConfig(Config):
    """Adam with decoupled weight decay (torch.optim.AdamW; arXiv:1711.05101)."""

    name: Literal["adamw"] = "adamw"
    lr: float = Field(1e-3, gt=0, description="learning rate at the top of the schedule")
    betas: tuple[float, float] = Field((0.9, 0.999), description="decay of the first and the second moment")
    eps: float = Field(1e-8, gt=0, description="added to the square root of the second moment")
    weight_decay: float = Field(0.01, ge=0, description="decoupled decay of weights of two or more dimensions")

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Make the optimizer of these parameters."""
        groups = _decay_matrices_only(parameters, self.weight_decay)
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps)


OptimizerConfig = Annotated[SgdConfig | AdamWConfig, Field(discriminator="name")]


def _decay_matrices_only(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Decaying biases and norm scales only hurts; every published recipe leaves them out."""
    matrices: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for p in parameters:
        (matrices if p.dim() >= 2 else vectors).append(p)
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
