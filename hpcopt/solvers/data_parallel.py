"""Data parallelism: every rank has all parameters and its own samples; gradients are summed over the ranks.

The gradient is that of the global mean loss, whatever the ranks' shares (``hpcopt.solvers.derivatives``): the
trajectory does not depend on the number of ranks but for rounding. An optimizer that asks for more gets it in the steps
for which it asks; its random numbers are a function of the run's seed and the step, the same on every rank.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch

from hpcopt.errors import JobError, fitting
from hpcopt.optim.derivatives import Asking
from hpcopt.optim.state import optimizer_state, restore_optimizer
from hpcopt.seeds import EVERY_RANK, derive
from hpcopt.shapes.context import Context
from hpcopt.shapes.solver import Solver, SolverConfig, Task, Tree
from hpcopt.shapes.stats import StepStats
from hpcopt.solvers.derivatives import GlobalLoss
from hpcopt.solvers.first_order import FirstOrder


class DataParallelConfig(SolverConfig, FirstOrder):
    """Any torch optimizer on gradients summed over the ranks."""

    derivatives: ClassVar[frozenset[str]] = frozenset({"gradient", "product", "variance"})

    name: Literal["data_parallel"] = "data_parallel"

    @property
    def needs(self) -> frozenset[str]:
        """What the optimizer can step by; signs have no norm to clip."""
        return self.optimizer.takes if self.clip_norm is None else self.optimizer.takes - {"signs"}

    @property
    def asks(self) -> frozenset[str]:
        return self.optimizer.asks

    def build(self, task: Task, context: Context) -> "DataParallel":
        """Make the solver. Collective."""
        return DataParallel(self, task, context)


class DataParallel(Solver):
    """The solver."""

    def __init__(self, config: FirstOrder, task: Task, context: Context) -> None:
        """Start from rank 0's parameters. Collective."""
        self.model = model = task.model
        world, exchange = context.world, context.required_exchange
        self.data_rank, self.data_size = world.rank, world.size
        self._config, self._clock = config, context.clock
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._derivatives = GlobalLoss(task, context, config.accumulate)
        self._exchange = self._derivatives.exchange
        if exchange.gives == "signs":
            self._optimizer = config.optimizer.build_on_signs(self._parameters, self._exchange.signs)
        else:
            self._optimizer = config.optimizer.build(self._parameters)
        self.optimizers = (self._optimizer,)
        self._asking, self._seed = None, context.seed("signs")
        if config.optimizer.asks - {"gradient"}:
            self._asking = _asking(self._optimizer)
            self._derivatives.expect_second([p for group in self._optimizer.param_groups for p in group["params"]])
        self._steps, self._step = context.total_steps, 0

    def step(self, batch: Any) -> StepStats:
        if self._asking is None:
            total = self._derivatives.gradient(batch)
        else:
            seed = derive(self._seed, self._step, EVERY_RANK, "signs")
            total = self._asking.differentiate(self._derivatives, batch, seed)
        with self._clock("update"):
            lr = self._update()
        choices = self._exchange.choices
        return StepStats(total, lr, self._exchange.metrics(), {} if choices is None else {"choices": choices})

    def _update(self) -> float:
        if self._config.clip_norm is not None:
            norm = float(self._exchange.norm())
            if norm > self._config.clip_norm:
                self._exchange.scale(self._config.clip_norm / norm)
        lr = self._config.learning_rate(self._step, self._steps)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.step()
        self._step += 1
        return lr

    def gather(self) -> None:
        """Every rank has it all."""

    def plan(self, flops: float) -> dict[str, str]:
        lines = {"parameters": f"{sum(p.numel() for p in self._parameters):,}", **self._exchange.plan()}
        if self._asking is not None:
            asked = self._derivatives.planned_bytes()
            lines["bytes asked for"] = f"{asked:,} more in a step for which the optimizer asks for more than gradients"
        return lines

    def state_dict(self) -> Tree:
        return {"step": self._step, "model": self.model.state_dict(), "optimizer": optimizer_state(self._optimizer)}

    def rank_state_dict(self) -> Tree:
        return self._derivatives.rank_state_dict()

    def load_state_dict(self, shared: Tree, parts: Sequence[Tree]) -> None:
        with fitting("the job's model or optimizer"):
            with torch.no_grad():
                self.model.load_state_dict(shared["model"])
            restore_optimizer(self._optimizer, shared["optimizer"])
            self._derivatives.load_state_dict(parts)
            self._step = shared["step"]


def _asking(optimizer: torch.optim.Optimizer) -> Asking:
    if not isinstance(optimizer, Asking):
        name = type(optimizer).__name__
        raise JobError(f"{name} says that it asks for more than gradients: give it differentiate()").everywhere()
    return optimizer
