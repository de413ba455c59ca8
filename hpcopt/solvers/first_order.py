"""What solvers around a torch optimizer let a job choose."""

import math
from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from hpcopt.compress.finite import MOST
from hpcopt.config import Config
from hpcopt.errors import JobError
from hpcopt.families import OPTIMIZERS, SCHEDULES
from hpcopt.optim import ConstantConfig, OptimizerConfig, ScheduleConfig, SgdConfig


class Scheduled(Config):
    """An optimizer and its learning rate over the run.

    Attributes:
        derivatives: what the solver can give an optimizer of the loss.
    """

    derivatives: ClassVar[frozenset[str]] = frozenset({"gradient"})

    optimizer: Annotated[OptimizerConfig, OPTIMIZERS] = Field(
        SgdConfig(), description="the optimizer that every rank runs"
    )
    schedule: Annotated[ScheduleConfig, SCHEDULES] = Field(ConstantConfig(), description="learning rate over the run")

    @model_validator(mode="after")
    def _gives_what_the_optimizer_asks_for(self) -> Self:
        if self.optimizer.asks - self.derivatives:
            raise ValueError(
                f'optimizer "{self.optimizer.name}" asks for the loss\'s second derivative, which this solver does not '
                'give: use [solver] name = "data_parallel"'
            )
        return self

    def learning_rate(self, step: int, steps: int) -> float:
        """The learning rate of a step of so many.

        Raises:
            JobError: on all ranks: it is no number that a parameter can move by.
        """
        factor = self.schedule.factor(step, steps)
        try:
            rate = float(self.optimizer.lr * factor)
        except OverflowError:
            rate = 2 * MOST
        if MOST < abs(rate) < math.inf:  # Inf and NaN a run diverges by
            raise JobError(
                f"lr = {self.optimizer.lr:g} times what schedule {self.schedule.name!r} gives is beyond all float32"
            ).everywhere()
        return rate


class FirstOrder(Scheduled):
    """An optimizer, and what happens to gradients before it sees them."""

    accumulate: int = Field(1, ge=1, description="micro-batches that a rank's share of a batch is cut into")
    clip_norm: float | None = Field(None, gt=0, description="largest Euclidean norm of what the optimizer gets")
