"""Somebody's own solver: steps of one length along the gradient of the global batch."""

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field

from hpcopt.errors import fitting
from hpcopt.exchange import Exchange
from hpcopt.shapes import Context, Solver, SolverConfig, StepStats, Task, Tree


class NormalisedConfig(SolverConfig):
    """Gradient descent by steps of one length."""

    length: float = Field(0.05, gt=0, description="of a step, in the space of all parameters")

    def build(self, task: Task, context: Context) -> "Normalised":
        return Normalised(self, task, context)


class Normalised(Solver):
    """The solver."""

    def __init__(self, config: NormalisedConfig, task: Task, context: Context) -> None:
        self.model, self._loss, self._length = task.model, task.loss, config.length
        self.data_rank, self.data_size = context.world.rank, context.world.size
        self._exchange = Exchange(
            context.world, self.model.named_parameters(), context.required_exchange, clock=context.clock
        )

    def step(self, batch: Any) -> StepStats:
        self._exchange.zero(backwards=1)
        loss = self._loss(self.model, batch) * batch.weight
        loss.backward()
        self._exchange.finish()
        norm = self._exchange.norm()
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.sub_(parameter.grad / norm, alpha=self._length)
        return StepStats(loss.item(), self._length, self._exchange.metrics())

    def gather(self) -> None:
        """Every rank has it all."""

    def plan(self, flops: float) -> dict[str, str]:
        return self._exchange.plan()

    def state_dict(self) -> Tree:
        return {"model": self.model.state_dict()}

    def rank_state_dict(self) -> Tree:
        return {"exchange": self._exchange.rank_state_dict()}

    def load_state_dict(self, shared: Tree, parts: Sequence[Tree]) -> None:
        with fitting("the job's model or exchange"):
            self.model.load_state_dict(shared["model"])
            self._exchange.load_state_dict([part["exchange"] for part in parts])
