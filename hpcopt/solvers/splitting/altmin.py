"""Online alternating minimisation (Choromanska et al. 2019, arXiv:1806.09077).

Every batch starts its codes c_t, the outputs of the linear layers before their activations, from a forward pass. From
the last code to the first, a few momentum steps on ``goal(f_{t+1}(c_t)) / mu + mse(c_t, c_t's start)``; then one Adam
step of every layer on its own goal. No multipliers, and nothing is kept for a sample.
"""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from hpcopt.errors import JobError, fitting
from hpcopt.families import OPTIMIZERS
from hpcopt.optim import OptimizerConfig
from hpcopt.optim.first_order import AdamWConfig
from hpcopt.optim.groups import set_learning_rate
from hpcopt.optim.state import optimizer_state, restore_optimizer
from hpcopt.shapes.batch import TensorBatch
from hpcopt.shapes.context import Context
from hpcopt.shapes.solver import Task, Tree
from hpcopt.shapes.stats import StepStats
from hpcopt.solvers.first_order import Scheduled
from hpcopt.solvers.splitting.serial import SerialConfig, SerialSolver


class AltMinConfig(SerialConfig, Scheduled):
    """Online alternating minimisation, as published."""

    name: Literal["altmin"] = "altmin"
    optimizer: Annotated[OptimizerConfig, OPTIMIZERS] = Field(
        AdamWConfig(lr=0.008, weight_decay=0), description="the optimizer that every layer has"
    )
    mu: float = Field(0.003, gt=0, description="weight of a code's distance from its start against its goal")
    code_steps: int = Field(5, ge=0, description="steps on each code")
    code_lr: float = Field(0.3, gt=0, description="length of a step on a code")
    code_momentum: float = Field(0.9, ge=0, lt=1, description="Nesterov momentum of a code")

    def build(self, task: Task, context: Context) -> "AltMin":
        """Make the solver."""
        return AltMin(self, task, context)


class AltMin(SerialSolver):
    """The solver."""

    def __init__(self, config: AltMinConfig, task: Task, context: Context) -> None:
        """Raises JobError: the model is not sequential, or there are several ranks."""
        super().__init__("altmin", task, context)
        self._config, self._steps = config, context.total_steps
        self._blocks = _cut_before_activations(task.model)
        self._optimizers = [config.optimizer.build(block.parameters()) for block in self._blocks]

    def step(self, batch: TensorBatch) -> StepStats:
        """One batch: codes, then weights."""
        inputs = [self.loss.inputs(batch)]
        with torch.no_grad():
            for block in self._blocks[:-1]:
                inputs.append(block(inputs[-1]))
        for t in reversed(range(1, len(self._blocks))):
            inputs[t] = self._move(inputs[t], t, inputs, batch)
        lr = self._config.learning_rate(self._step, self._steps)
        for t, optimizer in enumerate(self._optimizers):
            optimizer.zero_grad()
            goal = self._goal(inputs[t], t, inputs, batch)
            goal.backward()  # type: ignore[no-untyped-call]
            set_learning_rate(optimizer, lr)
            optimizer.step()
        self._step += 1
        return StepStats(goal.item(), lr)

    def _goal(self, z: Tensor, t: int, inputs: list[Tensor], batch: TensorBatch) -> Tensor:
        """What block t's outputs for z miss."""
        out = self._blocks[t](z)
        return self.loss.criterion(out, batch) if t == len(self._blocks) - 1 else F.mse_loss(out, inputs[t + 1])

    def _move(self, start: Tensor, t: int, inputs: list[Tensor], batch: TensorBatch) -> Tensor:
        code = start.clone().requires_grad_()
        momentum = self._config.code_momentum
        optimizer = torch.optim.SGD([code], self._config.code_lr, momentum=momentum, nesterov=momentum > 0)
        for _ in range(self._config.code_steps):
            objective = self._goal(code, t, inputs, batch) / self._config.mu + F.mse_loss(code, start)
            (code.grad,) = torch.autograd.grad(objective, code)
            optimizer.step()
        return code.detach()

    def state_dict(self) -> Tree:
        return {**super().state_dict(), "optimizers": [optimizer_state(optimizer) for optimizer in self._optimizers]}

    def load_state_dict(self, shared: Tree, parts: object) -> None:
        super().load_state_dict(shared, [])
        with fitting("the job's optimizers"):
            for optimizer, state in zip(self._optimizers, shared["optimizers"], strict=True):
                restore_optimizer(optimizer, state)


def _cut_before_activations(model: nn.Module) -> list[nn.Sequential]:
    """Blocks that each end with a layer with parameters."""
    if not isinstance(model, nn.Sequential):
        raise JobError("altmin trains an nn.Sequential")
    blocks: list[nn.Sequential] = []
    layers: list[nn.Module] = []
    for layer in model:
        layers.append(layer)
        if any(True for _ in layer.parameters()):
            blocks.append(nn.Sequential(*layers))
            layers = []
    if layers or not blocks:
        raise JobError("altmin trains a model that ends with a layer with parameters")
    return blocks
