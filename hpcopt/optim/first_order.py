"""First-order optimizers as sections of a job."""

from collections.abc import Iterable
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from hpcopt.optim.config import OptimizerConfig
from hpcopt.optim.groups import decay_matrices_only


class SgdConfig(OptimizerConfig):
    """Stochastic gradient descent with momentum (torch.optim.SGD)."""

    name: Literal["sgd"] = "sgd"
    lr: float = Field(0.1, gt=0, description="learning rate at the top of the schedule")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum")
    nesterov: bool = Field(False, description="Nesterov's form of momentum")
    weight_decay: float = Field(0.0, ge=0, description="L2 penalty on weights of two or more dimensions")

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Make the optimizer of these parameters."""
        groups = decay_matrices_only(parameters, self.weight_decay)
        return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=self.nesterov)


class AdamWConfig(OptimizerConfig):
    """Adam with decoupled weight decay (torch.optim.AdamW; arXiv:1711.05101)."""

    name: Literal["adamw"] = "adamw"
    lr: float = Field(1e-3, gt=0, description="learning rate at the top of the schedule")
    betas: tuple[float, float] = Field((0.9, 0.999), description="decay of the first and the second moment")
    eps: float = Field(1e-8, gt=0, description="added to the square root of the second moment")
    weight_decay: float = Field(0.01, ge=0, description="decoupled decay of weights of two or more dimensions")

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Make the optimizer of these parameters."""
        groups = decay_matrices_only(parameters, self.weight_decay)
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps)
