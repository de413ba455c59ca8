"""Data parallelism: every rank has all parameters and its own samples; gradients are summed over the ranks.

The loss of a global batch of B samples is their mean. Rank r, with b_r of them, weighs its own mean by b_r / B, so that
the plain sum over ranks is the gradient of the global mean, whatever the shares: the trajectory does not depend on the
number of ranks but for rounding.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, cast

import torch

from hpcopt.errors import fitting
from hpcopt.exchange import Exchange
from hpcopt.optim.adahessian import AdaHessian
from hpcopt.optim.state import optimizer_state, restore_optimizer
from hpcopt.shapes.context import Context
from hpcopt.shapes.solver import Solver, SolverConfig, Task, Tree
from hpcopt.shapes.stats import StepStats
from hpcopt.solvers.first_order import FirstOrder
from hpcopt.solvers.hessian_products import HessianProducts
from hpcopt.store.saved_parts import SavedParts


class DataParallelConfig(SolverConfig, FirstOrder):
    """Any torch optimizer on gradients summed over the ranks."""

    derivatives: ClassVar[frozenset[str]] = frozenset({"gradient", "product"})

    name: Literal["data_parallel"] = "data_parallel"

    @property
    def needs(self) -> frozenset[str]:
        """What the optimizer can step by; signs have no norm to clip."""
        return self.optimizer.takes if self.clip_norm is None else self.optimizer.takes - {"signs"}

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
        self._config, self._loss, self._clock = config, task.loss, context.clock
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._exchange = Exchange(
            world, model, exchange, broadcast=True, seed=context.seed("exchange"), clock=context.clock
        )
        if exchange.gives == "signs":
            self._optimizer = config.optimizer.build_on_signs(self._parameters, self._exchange.signs)
        else:
            self._optimizer = config.optimizer.build(self._parameters)
        self.optimizers = (self._optimizer,)
        self._products = None
        if "product" in config.optimizer.asks:
            self._products = HessianProducts(cast(AdaHessian, self._optimizer), model, context)
        self._steps, self._step = context.total_steps, 0

    def step(self, batch: Any) -> StepStats:
        micros = batch.split(self._config.accumulate)
        self._exchange.zero(backwards=len(micros))
        losses = []
        products = self._products if self._products is not None and self._products.begin(self._step) else None
        for micro in micros:
            with self._clock("forward"):
                loss = self._loss(self.model, micro) * micro.weight
            with self._clock("backward"):
                loss.backward() if products is None else products.backward(loss)
            losses.append(loss.detach())
        self._exchange.finish()
        if products is not None:
            products.finish()
        with self._clock("update"):
            lr = self._update()
        total = sum((loss.item() for loss in losses), 0.0)
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
        if self._products is not None:
            lines["bytes of the Hessian"] = f"{self._products.planned_bytes():,} more in a step that looks at it"
        return lines

    def state_dict(self) -> Tree:
        return {"step": self._step, "model": self.model.state_dict(), "optimizer": optimizer_state(self._optimizer)}

    def rank_state_dict(self) -> Tree:
        state = {"exchange": self._exchange.rank_state_dict()}
        return state if self._products is None else {**state, "products": self._products.rank_state_dict()}

    def load_state_dict(self, shared: Tree, parts: Sequence[Tree]) -> None:
        with fitting("the job's model or optimizer"):
            with torch.no_grad():
                self.model.load_state_dict(shared["model"])
            restore_optimizer(self._optimizer, shared["optimizer"])
            self._exchange.load_state_dict(SavedParts.of(parts).under("exchange"))
            if self._products is not None:
                self._products.load_state_dict(SavedParts.of(parts).under("products"))
            self._step = shared["step"]
