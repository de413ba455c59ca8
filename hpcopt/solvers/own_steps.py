"""A rank's step on its own samples, for solvers whose ranks exchange no gradients."""

import torch
from torch import Tensor, nn

from hpcopt.optim.groups import set_learning_rate
from hpcopt.shapes.batch import Batch
from hpcopt.shapes.context import Context
from hpcopt.shapes.late import Late, total
from hpcopt.shapes.solver import Task
from hpcopt.solvers.first_order import FirstOrder


class OwnSteps:
    """Gradients of this rank's part of a batch, and an optimizer that steps by them.

    Attributes:
        optimizer: of the model's parameters that have gradients.
    """

    def __init__(self, config: FirstOrder, task: Task, context: Context) -> None:
        self._config, self._model, self._loss, self._clock = config, task.model, task.loss, context.clock
        self._steps = context.total_steps
        self.optimizer: torch.optim.Optimizer = config.optimizer_of(task.model)

    def backward(self, batch: Batch) -> float | Late:
        """Leave the gradient of the mean over this rank's samples in the parameters; without samples there is none.

        Returns:
            This rank's summand of the global batch's mean loss.
        """
        self.optimizer.zero_grad()
        losses = list[Tensor]()
        for micro in batch.split(self._config.accumulate):
            with self._clock("forward"):
                loss = self._loss(self._model, micro) * (len(micro) / len(batch))
            with self._clock("backward"):
                loss.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        return total(losses, batch.weight)

    def update(self, step: int) -> float:
        """Step by the gradient that was left; gives the learning rate."""
        if self._config.clip_norm is not None:
            nn.utils.clip_grad_norm_(self._model.parameters(), self._config.clip_norm)
        lr = self._config.learning_rate(step, self._steps)
        set_learning_rate(self.optimizer, lr)
        self.optimizer.step()
        return lr
