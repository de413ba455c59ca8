"""A pipeline with back-propagation: the network cut into stages, a batch into micro-batches that follow each other.

The update is that of the whole batch, after all of its micro-batches are through: no weights age (arXiv:1811.06965).
With the same micro-batches, any number of stages and either schedule give the bits of one process: a stage gets the
activations and gradients that it would have, and adds gradients up in the order of the micro-batches.

Activations go up each boundary and gradients come down, both through ``codec`` if there is one. The gradient of a
decoded activation is taken for that of the encoded one (straight-through), and is encoded in its turn.
"""

import math
import time
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from hpcopt.pipeline.link import DOWN, UP
from hpcopt.pipeline.schedule import Op, Schedule, idle, kept, order
from hpcopt.pipeline.spread import kept_bytes
from hpcopt.shapes.batch import TensorBatch
from hpcopt.shapes.context import Context
from hpcopt.shapes.solver import Task
from hpcopt.shapes.stats import Scalar, StepStats
from hpcopt.solvers.pipeline.split import SplitConfig, SplitSolver


class PipelineConfig(SplitConfig):
    """Back-propagation through a network over ranks, in micro-batches."""

    name: Literal["pipeline"] = "pipeline"
    accumulate: int = Field(4, ge=1, description="micro-batches that a rank's share of a batch is cut into")
    order: Schedule = Field(
        "1f1b", description="forward and backward in turn, with few micro-batches kept; gpipe: all forward first"
    )

    def build(self, task: Task, context: Context) -> "Pipeline":
        """Make the solver. Collective.

        Raises:
            JobError: the model, its loss or the ranks cannot be cut as asked.
        """
        return Pipeline(self, task, context)


class Pipeline(SplitSolver):
    """The solver."""

    def __init__(self, config: PipelineConfig, task: Task, context: Context) -> None:
        """Start from rank 0's parameters. Collective."""
        super().__init__(config, task, context)
        self._order = config.order
        mesh = self.spread.mesh
        self._group = context.world
        if config.clip_norm is not None and 1 < mesh.stages < mesh.size:
            self._group = context.world.split(mesh.group, context.world.rank)
        self._begun: dict[int, tuple[Tensor, Tensor]] = {}  # inputs and outputs of micro-batches that are not yet back

    def settle(self) -> None:
        super().settle()
        self._layers = nn.Sequential(*(self.spread.blocks[t] for t in self.spread.owned))

    def step(self, batch: TensorBatch) -> StepStats:
        start_s, spread = time.perf_counter(), self.spread
        spread.waited_s()
        micros, losses = batch.split(self._config.accumulate), list[Tensor]()
        for piece in self.pieces:
            piece.begin(len(micros))
        ops = order(self._order, spread.mesh.stage, spread.mesh.stages, len(micros))
        for index, op in enumerate(ops):
            for coming in ops[index + (index > 0) : index + 2]:  # while one is computed, the next one's message comes
                self._expect(coming, micros)
            if op.forward:
                self._forward(op.part, micros[op.part])
                losses += [] if spread.above else [self._begun[op.part][1].detach()]
            else:
                self._backward(op.part, micros[op.part])
        rate = self.update()
        loss = None if spread.above else sum((loss.item() for loss in losses), 0.0)
        waited = spread.waited_s() / (time.perf_counter() - start_s)
        return StepStats(loss, rate, {f"idle_{spread.mesh.stage}": Scalar(waited)})

    def _expect(self, op: Op, micros: Sequence[TensorBatch]) -> None:
        """Post the receive of what an operation needs."""
        spread, samples = self.spread, len(micros[op.part])
        if op.forward and spread.below:
            spread.below.expect(*spread.at(spread.owned[0], samples), UP)
        if not op.forward and spread.above:
            spread.above.expect(*spread.at(spread.owned[-1] + 1, samples), DOWN)

    def _forward(self, part: int, micro: TensorBatch) -> None:
        """Take a micro-batch up: its outputs, or its summand of the loss, stay until it comes down."""
        spread = self.spread
        if spread.below:
            x = spread.below.receive(*spread.at(spread.owned[0], len(micro)), UP).requires_grad_()
        else:
            x = self.inputs(micro)
        with self._clock("forward"):
            out = self._layers(x)
            if not spread.above:
                out = self._loss.criterion(out, micro) * micro.weight
        self._begun[part] = x, out
        if spread.above:
            spread.above.send(out, UP, self.message(part))

    def _backward(self, part: int, micro: TensorBatch) -> None:
        """Take it down: gradients add up in the parameters, and that of the inputs goes on."""
        spread = self.spread
        slope = spread.above.receive(*spread.at(spread.owned[-1] + 1, len(micro)), DOWN) if spread.above else None
        x, out = self._begun.pop(part)
        with self._clock("backward"):
            if out.requires_grad:
                torch.autograd.backward(out, slope)
        if spread.below:
            spread.below.send(torch.zeros_like(x) if x.grad is None else x.grad, DOWN, self.message(part))

    def clip(self) -> None:
        """By the norm over all stages. Collective over the group's, if the job clips."""
        most = self._config.clip_norm
        if most is None:
            return
        squares = sum(float(piece.exchange.norm()) ** 2 for piece in self.pieces)
        (total,) = self._group.sum([squares]) if self.spread.mesh.stages > 1 else [squares]
        if total > most**2:
            for piece in self.pieces:
                piece.exchange.scale(most / math.sqrt(total))

    def plan(self, flops: float) -> dict[str, str]:
        spread = self.spread
        mesh, parts = spread.mesh, self._config.accumulate
        orders = [order(self._order, stage, mesh.stages, parts) for stage in range(mesh.stages)]
        shares = idle(orders, [sum(spread.costs[t] for t in mesh.owned(stage)) for stage in range(mesh.stages)])
        inputs = [spread.examples[mesh.owned(stage)[0]] for stage in range(mesh.stages)]
        most = [f"{kept(ops)} x {kept_bytes(self._stage(s), inputs[s]):,}" for s, ops in enumerate(orders)]
        return {
            **super().plan(flops),
            "micro-batches": f"{parts}, {self._order}: at most {', '.join(most)} bytes a sample kept, by stage",
            "bubble": f"{(mesh.stages - 1) / (parts + mesh.stages - 1):.0%} of a step with equal stages; with these "
            f"{', '.join(f'{share:.0%}' for share in shares)} by stage, if messages took no time",
        }

    def _stage(self, stage: int) -> nn.Module:
        return nn.Sequential(*(self.spread.blocks[t] for t in self.spread.mesh.owned(stage)))
