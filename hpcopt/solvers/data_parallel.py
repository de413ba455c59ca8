"""Data parallelism: every rank has all parameters and its own samples; gradients are summed over the ranks.

The gradient is that of the global mean loss, whatever the ranks' shares (``hpcopt.solvers.derivatives``): the
trajectory does not depend on the number of ranks but for rounding. An optimizer that asks for more gets it in the steps
for which it asks; its random numbers are a function of the run's seed and the step, the same on every rank.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Literal, SupportsFloat

import torch
from torch import Tensor

from hpcopt.errors import JobError, fitting
from hpcopt.optim.by_pattern import describe
from hpcopt.optim.derivatives import Asking
from hpcopt.optim.groups import set_learning_rate
from hpcopt.optim.modes import to_evaluation, to_training
from hpcopt.optim.several import has_modes, name_of
from hpcopt.optim.state import optimizer_state, restore_optimizer
from hpcopt.randomness import drawn_by
from hpcopt.seeds import EVERY_RANK, derive
from hpcopt.shapes.context import Context
from hpcopt.shapes.solver import Solver, SolverConfig, Task, Tree, optimizer_tensors
from hpcopt.shapes.stats import StepStats
from hpcopt.solvers import absences
from hpcopt.solvers.derivatives import GlobalLoss
from hpcopt.solvers.first_order import Synchronous, trained
from hpcopt.solvers.sharded.optimizer import ShardedOptimizer, joined
from hpcopt.store.saved_parts import SavedParts


class DataParallelConfig(SolverConfig, Synchronous):
    """Any torch optimizer on gradients summed over the ranks."""

    derivatives: ClassVar[frozenset[str]] = frozenset({"gradient", "product", "variance"})

    name: Literal["data_parallel"] = "data_parallel"

    @property
    def needs(self) -> frozenset[str]:
        """What the optimizer can step by; signs have no norm to clip."""
        own = any(group.optimizer is not None for group in self.groups)
        gradients = own or self.shard_optimizer or self.clip_norm is not None
        return self.optimizer.takes - {"signs"} if gradients else self.optimizer.takes

    @property
    def asks(self) -> frozenset[str]:
        return self.optimizer.asks

    @property
    def tied_to_ranks(self) -> str:
        if self.shard_optimizer:
            return "shard_optimizer cuts the parameters by ranks"
        if self.asks - {"gradient"}:
            return f'optimizer "{self.optimizer.name}" asks for more than gradients, which virtual ranks do not give'
        return ""

    def build(self, task: Task, context: Context) -> "DataParallel":
        """Make the solver. Collective."""
        return DataParallel(self, task, context)


class DataParallel(Solver):
    """The solver."""

    def __init__(self, config: Synchronous, task: Task, context: Context) -> None:
        """Start from rank 0's parameters. Collective."""
        self.model = model = task.model
        world, exchange = context.world, context.required_exchange
        self.data_rank, self.data_size = world.rank, world.size
        self._config, self._clock = config, context.clock
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._derivatives = GlobalLoss(task, context, config.accumulate)
        self._exchange = self._derivatives.exchange
        signs = self._exchange.signs if exchange.gives == "signs" else None
        self._optimizer = config.optimizer_of(model, signs)
        self._groups = describe(self._optimizer, trained(model))
        self._modes, self._aside = has_modes(self._optimizer), False
        self.optimizers = () if self._modes else (self._optimizer,)
        self._asking, self._seed = None, context.seed("signs")
        if config.optimizer.asks - {"gradient"}:
            self._asking = _asking(self._optimizer)
            self._derivatives.expect_second([p for group in self._optimizer.param_groups for p in group["params"]])
        self._shards = ShardedOptimizer(self._optimizer, trained(model), world) if config.shard_optimizer else None
        self.roll_call = self._exchange.roll_call
        self.lockstep = self.roll_call is None or self.roll_call.patience_s is None
        self._loss: SupportsFloat | None = None  # of the newest step for which this rank had one
        self._steps, self._step = context.total_steps, 0

    def step(self, batch: Any) -> StepStats:
        self._to_training()
        total: SupportsFloat | None
        if self._exchange.decided():  # this rank is late: it catches up
            self._exchange.zero()
            self._exchange.finish()
            total = self._loss
        elif self._asking is None:
            total = self._derivatives.gradient(batch)
        else:
            seed = derive(self._seed, self._step, EVERY_RANK, "signs")
            total = self._asking.differentiate(self._derivatives, batch, seed)
        with self._clock("update"):
            lr = self._update()
        self._loss = total
        told, choices = absences.told(self.roll_call), self._exchange.choices
        tables = told["tables"] if choices is None else {**told["tables"], "choices": choices}
        return StepStats(total, lr, {**self._exchange.metrics(), **told["scalars"]}, tables)

    def _update(self) -> float:
        if self._config.clip_norm is not None:
            norm = float(self._exchange.norm())
            if norm > self._config.clip_norm:
                self._exchange.scale(self._config.clip_norm / norm)
        lr = self._config.learning_rate(self._step, self._steps)
        set_learning_rate(self._optimizer, lr)
        with self._drawn_alike():
            (self._shards or self._optimizer).step()
        self._step += 1
        return lr

    def _drawn_alike(self) -> AbstractContextManager[None]:
        """Within it, all ranks draw the same, whatever they have drawn before."""
        if not self._config.draws:
            return nullcontext()
        return drawn_by(derive(self._seed, self._step, EVERY_RANK, "optimizer"))

    def gather(self) -> None:
        """Every rank has it all; the parameters go where the optimizer wants them to be evaluated and saved."""
        to_evaluation(self._optimizer)
        if self._shards is not None and self._modes and not self._aside:
            self._shards.spread()
        self._aside = self._modes

    def _to_training(self) -> None:
        """Back again. Collective, if parameters have moved."""
        to_training(self._optimizer)
        if self._shards is not None and self._aside:
            self._shards.spread()
        self._aside = False

    def must_be_finite(self) -> Iterator[tuple[str, Tensor]]:
        """The parameters, and what the optimizer keeps."""
        yield from self.model.named_parameters()
        yield from optimizer_tensors(self._optimizer)

    def plan(self, flops: float) -> dict[str, str]:
        lines = {"parameters": f"{sum(p.numel() for p in self._parameters):,}", **self._exchange.plan()}
        if self._asking is not None:
            asked = self._derivatives.planned_bytes()
            lines["bytes asked for"] = f"{asked:,} more in a step for which the optimizer asks for more than gradients"
        if "\n" in self._groups:
            lines["groups"] = self._groups
        return lines if self._shards is None else {**lines, **self._shards.plan()}

    def state_dict(self) -> Tree:
        sharded = {"optimizer": name_of(self._optimizer), "sharded": True}
        own = optimizer_state(self._optimizer) if self._shards is None else sharded
        return {"step": self._step, "model": self.model.state_dict(), "optimizer": own}

    def rank_state_dict(self) -> Tree:
        own = self._derivatives.rank_state_dict()
        return own if self._shards is None else {**own, "shard": self._shards.rank_state_dict()}

    def load_state_dict(self, shared: Tree, parts: Sequence[Tree]) -> None:
        with fitting("the job's model or optimizer"):
            with torch.no_grad():
                self.model.load_state_dict(shared["model"])
            self._restore_optimizer(shared["optimizer"], SavedParts.of(parts))
            self._derivatives.load_state_dict(parts)
            self._step, self._aside = shared["step"], self._modes

    def _restore_optimizer(self, shared: Tree, parts: SavedParts) -> None:
        """From shards or from a whole state, into either."""
        if self._shards is not None:
            self._shards.load_state_dict(shared, parts.under("shard"))
            return
        if "sharded" in shared:
            shared = joined(self._optimizer, trained(self.model), parts.under("shard"), shared["optimizer"])
        restore_optimizer(self._optimizer, shared)


def _asking(optimizer: torch.optim.Optimizer) -> Asking:
    if not isinstance(optimizer, Asking):
        name = type(optimizer).__name__
        raise JobError(f"{name} says that it asks for more than gradients: give it differentiate()").everywhere()
    return optimizer
