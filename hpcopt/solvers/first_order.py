"""What solvers around a torch optimizer let a job choose."""

from typing import Annotated

from pydantic import Field

from hpcopt.config import Config
from hpcopt.families import OPTIMIZERS, SCHEDULES
from hpcopt.optim import ConstantConfig, OptimizerConfig, ScheduleConfig, SgdConfig


class Scheduled(Config):
    """An optimizer and its learning rate over the run."""

    optimizer: Annotated[OptimizerConfig, OPTIMIZERS] = Field(
        SgdConfig(), description="the optimizer that every rank runs"
    )
    schedule: Annotated[ScheduleConfig, SCHEDULES] = Field(ConstantConfig(), description="learning rate over the run")

    def learning_rate(self, step: int, steps: int) -> float:
        """The learning rate of a step of so many."""
        return self.optimizer.lr * self.schedule.factor(step, steps)


class FirstOrder(Scheduled):
    """An optimizer, and what happens to gradients before it sees them."""

    accumulate: int = Field(1, ge=1, description="micro-batches that a rank's share of a batch is cut into")
    clip_norm: float | None = Field(None, gt=0, description="largest Euclidean norm of what the optimizer gets")
