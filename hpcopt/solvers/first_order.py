"""What solvers around a torch optimizer let a job choose."""

import math
from collections.abc import Callable
from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator
from torch import nn
from torch.optim import Optimizer

from hpcopt.compress.finite import MOST
from hpcopt.config import Config
from hpcopt.errors import JobError
from hpcopt.families import OPTIMIZERS, SCHEDULES
from hpcopt.optim import ConstantConfig, OptimizerConfig, ScheduleConfig, SgdConfig
from hpcopt.optim.by_pattern import GroupConfig, build_by_pattern
from hpcopt.optim.config import Outcome


class Scheduled(Config):
    """An optimizer and its learning rate over the run.

    Attributes:
        derivatives: what the solver can give an optimizer of the loss.
        modes: whether it tells an optimizer when parameters are trained and when evaluated.
    """

    derivatives: ClassVar[frozenset[str]] = frozenset({"gradient"})
    modes: ClassVar[bool] = False

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

    @model_validator(mode="after")
    def _tells_the_optimizer_its_mode(self) -> Self:
        if self.optimizer.has_modes and not self.modes:
            raise ValueError(
                f'optimizer "{self.optimizer.name}" as it is here is evaluated at other parameters than those that it '
                'trains, which this solver does not follow: use [solver] name = "data_parallel" or "kaisa"'
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
    groups: tuple[GroupConfig, ...] = Field(
        (), description="parameters by pattern that have rates, decay or optimizers of their own"
    )

    @model_validator(mode="after")
    def _groups_step_by_gradients_alone(self) -> Self:
        others = [group.optimizer for group in self.groups if group.optimizer is not None]
        for config in (self.optimizer, *others) if others else ():
            if config.asks - {"gradient"}:
                raise ValueError(f'optimizer "{config.name}" asks for more than gradients, and so stands alone')
        if any(config.has_modes and not self.modes for config in others):
            raise ValueError("an optimizer of groups is evaluated at other parameters than those that it trains")
        return self

    @property
    def draws(self) -> bool:
        """Whether optimizers' steps draw at random."""
        return self.optimizer.draws or any(g.optimizer is not None and g.optimizer.draws for g in self.groups)

    def optimizer_of(self, model: nn.Module, signs: Callable[[float], Outcome] | None = None) -> Optimizer:
        """Make the optimizer of a model's trained parameters; ``signs`` as in ``OptimizerConfig.build_on_signs``."""
        return build_by_pattern(self.optimizer, self.groups, trained(model), signs)


class Synchronous(FirstOrder):
    """An optimizer on gradients that are the same on all ranks."""

    modes: ClassVar[bool] = True

    shard_optimizer: bool = Field(
        False, description="a rank keeps the optimizer's state of its part of the parameters only (ZeRO, stage 1)"
    )

    @model_validator(mode="after")
    def _can_be_sharded(self) -> Self:
        if self.shard_optimizer and self.draws:
            raise ValueError("shard_optimizer does not go with an optimizer that draws at random: ranks would differ")
        return self


def trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The parameters that get gradients, by name."""
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]
