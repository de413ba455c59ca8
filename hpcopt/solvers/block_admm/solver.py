"""Stochastic Block-ADMM (arXiv:2105.00339): blocks that agree on auxiliaries instead of back-propagating.

What a batch does to the blocks is in ``stage.py``; here is how batches travel over the ranks, each of which holds a
stage. A message goes up and one comes down each boundary, and several batches can be in flight: then the weights that
take a batch down are some updates newer than those that took it up, which extrapolates for it (as arXiv:1809.02839 does
for pipelined back-propagation).
"""

from collections import deque
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field

from hpcopt.errors import JobError, fitting
from hpcopt.pipeline.cut import cut
from hpcopt.pipeline.link import DOWN, UP, Link
from hpcopt.pipeline.mesh import Mesh
from hpcopt.pipeline.spread import SpreadConfig, share_blocks
from hpcopt.shapes.batch import TensorBatch
from hpcopt.shapes.context import Context
from hpcopt.shapes.loss import OutputLoss
from hpcopt.shapes.solver import Solver, SolverConfig, Task, Tree
from hpcopt.shapes.stats import Scalar, StepStats
from hpcopt.solvers.block_admm.block import Block
from hpcopt.solvers.block_admm.goal import Fit, Goal, Match
from hpcopt.solvers.block_admm.stage import AdmmConfig, Flight, Stage
from hpcopt.store.saved_parts import SavedParts


class BlockAdmmConfig(SolverConfig, AdmmConfig, SpreadConfig):
    """Stochastic Block-ADMM: no gradient crosses from one block of the model into another."""

    name: Literal["block_admm"] = "block_admm"
    in_flight: int = Field(1, ge=1, description="batches under way through the stages at a time; 1 waits for each")
    accumulate: int = Field(
        1, ge=1, description="micro-batches of a batch that are under way at a time, for one update of the weights"
    )

    def build(self, task: Task, context: Context) -> "BlockAdmm":
        """Make the solver. Collective.

        Raises:
            JobError: the model, its loss or the ranks cannot be cut as asked.
        """
        return BlockAdmm(self, task, context)


class BlockAdmm(Solver):
    """The solver, on a rank that holds a run of consecutive blocks."""

    def __init__(self, config: BlockAdmmConfig, task: Task, context: Context) -> None:
        """Start from rank 0's parameters. Collective."""
        model, loss, world = task.model, task.loss, context.world
        if not isinstance(loss, OutputLoss):
            raise JobError("Block-ADMM needs a workload whose loss is a function of the model's outputs and the batch")
        self.model, self._loss, self._config, self._world, self._clock = model, loss, config, world, context.clock
        example = loss.example.to(next(model.parameters()).dtype)
        self._all = cut(model, example, blocks=config.blocks, balance=config.balance, at=config.cuts)
        self._mesh = mesh = Mesh.choose(world.rank, world.size, len(self._all), config.stages)
        self.data_rank, self.data_size = mesh.group, mesh.groups
        for tensor in model.state_dict().values():
            world.broadcast(tensor)
        self._dtype, owned = example.dtype, mesh.owned(mesh.stage)
        peers = world if mesh.stages == 1 else world.split(mesh.stage, world.rank)
        if config.in_flight > 1 and config.accumulate > 1:
            raise JobError("[solver] either in_flight or accumulate may be more than 1: batches, or parts of one")
        self._delay = mesh.delay(max(config.in_flight, config.accumulate))
        self._ages = self.pipelined = self._delay > 0 and config.accumulate == 1
        blocks = [
            Block(t, self._all[t], config.optimizer, peers, context, config.curvature or 0.0, extrapolate=self._ages)
            for t in owned
        ]
        self.stage = Stage(config, loss, example, self._all, owned, blocks)
        self._below = None if owned[0] == 0 else self._link(context, world.rank - 1)
        self._above = None if owned[-1] == len(self._all) - 1 else self._link(context, world.rank + 1)
        self._flights: deque[Flight] = deque()
        self._steps, self._step = context.total_steps, 0

    def step(self, batch: TensorBatch) -> StepStats:
        """Take a batch up, and the oldest one in flight down; or all micro-batches of this one up and down."""
        config = self._config
        if batch.global_size // self._mesh.groups < config.accumulate:
            raise JobError(f"[solver] accumulate = {config.accumulate}, but a rank has fewer samples of a batch")
        rho = config.rho_at(self._step, self._steps)
        micros = batch.split(config.accumulate)
        landed: list[Flight] = []
        for part, micro in enumerate(micros):
            flight = Flight(micro, self._step, part, rho)
            with self._clock("forward"):
                self._up(flight)
            self._flights.append(flight)
            if len(self._flights) > self._delay:
                landed.append(self._land(len(micros)))
        while len(micros) > 1 and self._flights:
            landed.append(self._land(len(micros)))
        self._step += 1
        if not landed:
            return StepStats(None, config.learning_rate(self._step - 1, self._steps))
        return self._update(landed)

    def gather(self) -> None:
        """Finish the batches in flight; then every block goes from its rank to all others. Collective."""
        while self._flights:
            self._update([self._land(1)])
        for link in (self._below, self._above):
            if link:
                link.flush()
        share_blocks(self._world, self._mesh, self._all)

    def _up(self, flight: Flight) -> None:
        """Seed the auxiliaries of a batch and send the last ones on. The batches in flight before it will each have
        moved the weights when it comes down: it goes up with the weights expected then.
        """
        if self._below:
            start = self._below.receive(self._shape(self.stage.owned[0], flight), self._dtype, UP)
        else:
            start = self.stage.inputs(flight.batch)
        self.stage.seed(flight, start, ahead=len(self._flights) if self._config.accumulate == 1 else 0)
        if self._above:
            self._above.send(flight.anchors[-1], UP, self._message(flight))

    def _land(self, visits: int) -> Flight:
        """Take the oldest flight down and learn from it; ``visits`` of them make an update."""
        flight = self._flights.popleft()
        with self._clock("backward"):
            self.stage.down(flight, self._goal(flight))
            if self._below:
                self._below.send(flight.inputs[0], DOWN, self._message(flight), flight.anchors[0])
        with self._clock("update"):
            self.stage.learn(flight, visits)
        return flight

    def _goal(self, flight: Flight) -> Goal:
        """What the last block here should give: what the rank above made of it, or what the labels say."""
        if not self._above:
            return Fit(self._loss.criterion, flight.batch, self._config.criterion_curvature)
        then = flight.anchors[-1]
        above = self._above.receive(self._shape(self.stage.owned[-1] + 1, flight), self._dtype, DOWN, then)
        if self._ages:
            # The weights are not those that the batch went up with. The rank above moved z away from what it got then;
            # the same move away from what they give now keeps z from calling the newer updates back.
            self.stage.seed(flight, flight.anchors[0])
            above = above + (flight.anchors[-1] - then)
        return Match(above - flight.duals[-1], flight.rho)

    def _update(self, landed: Sequence[Flight]) -> StepStats:
        """Step the parameters, then the duals."""
        rate = self._config.learning_rate(landed[0].number, self._steps)
        with self._clock("update"):
            residual = self.stage.update(landed, rate)
        loss = None if self._above else sum(flight.loss for flight in landed)
        return StepStats(loss, rate, {"residual": Scalar(residual, "max")})

    def _link(self, context: Context, neighbour: int) -> Link:
        c = self._config
        under_way = max(c.in_flight, c.accumulate)
        return Link(context, neighbour, c.codec, under_way)

    def _message(self, flight: Flight) -> int:
        return flight.number * self._config.accumulate + flight.part

    def _shape(self, t: int, flight: Flight) -> tuple[int, ...]:
        return (len(flight.batch), *self.stage.shapes[t])

    def plan(self, flops: float) -> dict[str, str]:
        mesh, owned, shapes = self._mesh, self.stage.owned, self.stage.shapes
        down, up = (
            shapes[t].numel() if link else 0 for link, t in ((self._below, owned[0]), (self._above, owned[-1] + 1))
        )
        return {
            "parameters": f"{sum(p.numel() for p in self.model.parameters()):,}",
            "blocks": f"{len(self._all)} on {mesh.stages} ranks, {mesh.groups} data groups of those",
            "in flight": f"{self._config.in_flight} batches of {self._config.accumulate} micro-batches",
            "bytes a step": f"{(down + up) * self._dtype.itemsize:,} a sample sent by this rank for its boundaries",
        }

    def state_dict(self) -> Tree:
        mesh = self._mesh
        models = {"model": self.model.state_dict(), "first": self.stage.first_state_dict()}
        return {"step": self._step, **models, "ranks": [mesh.size, mesh.stages]}

    def rank_state_dict(self) -> Tree:
        return self.stage.rank_state_dict()

    def load_state_dict(self, shared: Tree, parts: Sequence[Tree]) -> None:
        def holders(block: int) -> SavedParts:
            first = Mesh(0, size, len(self._all), stages).owner(block)
            return SavedParts.of(parts)[first:size:stages]

        with fitting("the job's model or blocks"):
            size, stages = shared["ranks"]
            same = (size, stages) == (self._mesh.size, self._mesh.stages)
            with torch.no_grad():
                self.model.load_state_dict(shared["model"])
            self.stage.load_state_dict(shared["first"], holders, [parts[self._world.rank]] if same else parts)
            self._step = shared["step"]
