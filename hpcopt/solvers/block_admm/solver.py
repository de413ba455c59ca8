"""Stochastic Block-ADMM (arXiv:2105.00339): blocks that agree on auxiliaries instead of back-propagating.

The blocks f_1 .. f_T with parameters th_t are tied by auxiliaries z_t, one vector for each sample and boundary::

    min  sum_i loss(f_T(z_{T-1,i}), y_i)   so that  z_{t,i} = f_t(z_{t-1,i}),  z_{0,i} = x_i

whose augmented Lagrangian, with u the multipliers divided by rho, is::

    L = sum_i loss(f_T(z_{T-1,i}), y_i) + sum_{t<T} rho/2 |f_t(z_{t-1,i}) - z_{t,i} + u_{t,i}|^2 - rho/2 |u_{t,i}|^2

One batch goes up and down the blocks once:

1. up:    z_t <- f_t(z_{t-1}) + u_t                 seed the auxiliaries with the present weights
2. down:  z_t <- prox-linear steps on L             from the last boundary to the first, with the new z_{t+1}
3. each block on its own: one optimizer step on its term of L
4. each boundary:  u_t <- u_t + f_t(z_{t-1}) - z_t

The batch form keeps u_t for every sample; the online form, for data seen once, has u = 0 and keeps nothing. Across
ranks a message goes up and one comes down each boundary, and several batches can be in flight: then the weights that
take a batch down are some updates newer than those that took it up, which extrapolates for it (as arXiv:1809.02839 does
for pipelined back-propagation).
"""

import copy
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from hpcopt.comm.world import World
from hpcopt.compress import CodecConfig
from hpcopt.errors import CheckpointError, JobError
from hpcopt.exchange import ExchangeConfig, require_sums
from hpcopt.exchange.reducer import Chosen, Entries
from hpcopt.optim import OptimizerConfig
from hpcopt.optim.first_order import AdamWConfig
from hpcopt.phases import PhaseClock
from hpcopt.solvers.block_admm.block import Block
from hpcopt.solvers.block_admm.cut import Balance, cut, output_shapes
from hpcopt.solvers.block_admm.goal import Fit, Goal, Match
from hpcopt.solvers.block_admm.layout import Layout
from hpcopt.solvers.block_admm.link import DOWN, UP, Link
from hpcopt.solvers.block_admm.samples import SampleTable
from hpcopt.solvers.first_order import Scheduled
from hpcopt.solvers.solver import Batch, Loss, OutputLoss, StepStats, Tree


class BlockAdmmConfig(Scheduled):
    """Stochastic Block-ADMM: no gradient crosses from one block of the model into another."""

    name: Literal["block_admm"] = "block_admm"
    optimizer: OptimizerConfig = Field(AdamWConfig(weight_decay=0), description="the optimizer that every block has")
    blocks: int | None = Field(
        None, ge=1, description="blocks that the model is cut into; by default every layer with parameters is one"
    )
    balance: Balance = Field("cost", description="what blocks have as much of as each other: multiply-adds, or layers")
    cuts: tuple[str, ...] = Field((), description="instead of blocks: names of the layers that each begin one")
    stages: int | None = Field(
        None, ge=1, description="ranks that one copy of the model is spread over; by default as many as fit"
    )
    in_flight: int = Field(1, ge=1, description="batches under way through the stages at a time; 1 waits for each")
    accumulate: int = Field(
        1, ge=1, description="micro-batches of a batch that are under way at a time, for one update of the weights"
    )
    form: Literal["batch", "online"] = Field("batch", description="keep duals for every sample, or have none")
    auxiliaries: Literal["seeded", "stored", "revisited"] = Field(
        "seeded",
        description="start each visit from a forward sweep, or from what the last visit left and the first one from "
        "a sweep with the first weights (stored) or the present ones (revisited)",
    )
    rho: float = Field(10.0, gt=0, description="weight of the penalty, at the start")
    rho_end: float | None = Field(
        None, gt=0, description="weight of the penalty at the end; by default as at the start"
    )
    rho_shape: Literal["geometric", "linear"] = Field("geometric", description="how it goes there")
    z_steps: int = Field(3, ge=0, description="steps on each auxiliary")
    dual_step: float = Field(1.0, ge=0, le=1, description="length of the step on the duals; 0 is a pure penalty")
    backtrack: bool = Field(False, description="shorten a step on the auxiliaries until it cannot raise its term")
    curvature: float | None = Field(
        None, gt=0, description="squared norm of every block's Jacobian, instead of estimating it by power iteration"
    )
    criterion_curvature: float = Field(
        0.5, gt=0, description="largest second derivative of a sample's loss in the outputs; 1/2 for cross-entropy"
    )
    measure_every: int = Field(10, ge=1, description="steps between two estimates of the curvature")
    codec: CodecConfig | None = Field(None, description="what the messages between stages are encoded with")
    codec_seed: int = Field(0, ge=0, description="decides what the codec draws at random")

    def build(
        self, model: nn.Module, loss: Loss, world: World, exchange: ExchangeConfig, steps: int, clock: PhaseClock
    ) -> "BlockAdmm":
        """Make the solver. Collective.

        Raises:
            JobError: the model, its loss or the ranks cannot be cut as asked.
        """
        return BlockAdmm(self, model, loss, world, exchange, steps, clock)

    def rho_at(self, step: int, steps: int) -> float:
        """The weight of the penalty at a step of so many."""
        end = self.rho if self.rho_end is None else self.rho_end
        progress = step / max(1, steps - 1)
        if self.rho_shape == "linear":
            return self.rho + (end - self.rho) * progress
        return float(self.rho * (end / self.rho) ** progress)


@dataclass
class Flight:
    """One batch, or micro-batch, on its way through this rank's blocks.

    Attributes:
        number, part: which step's batch it is, and which micro-batch of that.
        inputs: each block's inputs z, as they are now.
        anchors: each block's inputs as the block below wants them, f(z) + u; then the outputs of the last block here.
        duals: u of each block's outputs.
        goals: each block's goal, once it is down.
        loss: its summand of the last block's mean goal.
    """

    batch: Batch
    number: int
    part: int
    rho: float
    inputs: list[Tensor] = field(default_factory=list)
    anchors: list[Tensor] = field(default_factory=list)
    duals: list[Tensor] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    loss: float = 0.0


class BlockAdmm:
    """The solver, on a rank that holds a run of consecutive blocks."""

    def __init__(
        self,
        config: BlockAdmmConfig,
        model: nn.Module,
        loss: Loss,
        world: World,
        exchange: ExchangeConfig,
        steps: int,
        clock: PhaseClock,
    ) -> None:
        """Start from rank 0's parameters. Collective."""
        if not isinstance(loss, OutputLoss):
            raise JobError("Block-ADMM needs a workload whose loss is a function of the model's outputs and the batch")
        sums = require_sums(exchange, config.name)
        self.model, self._loss, self._config, self._world, self._clock = model, loss, config, world, clock
        example = loss.example.to(next(model.parameters()).dtype)
        self._all = cut(model, example, blocks=config.blocks, balance=config.balance, at=config.cuts)
        self._layout = layout = Layout.choose(world.rank, world.size, len(self._all), config.stages)
        self.data_rank, self.data_size = layout.group, layout.groups
        for tensor in model.state_dict().values():
            world.broadcast(tensor)
        self._first = nn.ModuleList(copy.deepcopy(self._all) if config.auxiliaries == "stored" else [])
        shapes = [example.shape[1:], *output_shapes(self._all, example)]
        self._dtype, self._shapes, self._owned = example.dtype, shapes, layout.owned(layout.stage)
        peers = world if layout.stages == 1 else world.split(layout.stage, world.rank)
        if config.in_flight > 1 and config.accumulate > 1:
            raise JobError("[solver] either in_flight or accumulate may be more than 1: batches, or parts of one")
        self._delay = layout.delay(max(config.in_flight, config.accumulate))
        ages = self._delay > 0 and config.accumulate == 1
        self._blocks = [
            Block(self._all[t], config.optimizer, peers, sums, config.curvature or 0.0, clock, extrapolate=ages)
            for t in self._owned
        ]
        self._is_first, self._is_last = self._owned[0] == 0, self._owned[-1] == len(self._all) - 1
        boundaries = [t for t in self._owned if t < len(self._all) - 1]
        self._device = example.device
        self._duals = {t: SampleTable(shapes[t + 1], self._dtype, self._device) for t in boundaries}
        self._stored = {t: SampleTable(shapes[t], self._dtype, self._device) for t in self._owned if t > 0}
        self._below = None if self._is_first else self._link(world.rank - 1)
        self._above = None if self._is_last else self._link(world.rank + 1)
        self._flights: deque[Flight] = deque()
        self._steps, self._step = steps, 0

    def step(self, batch: Batch) -> StepStats:
        """Take a batch up, and the oldest one in flight down; or all micro-batches of this one up and down."""
        config = self._config
        if batch.global_size // self._layout.groups < config.accumulate:
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
            return StepStats(0.0, config.learning_rate(self._step - 1, self._steps), {"residual": 0.0})
        return self._update(landed)

    def gather(self) -> None:
        """Finish the batches in flight; then every block goes from its rank to all others. Collective."""
        while self._flights:
            self._update([self._land(1)])
        for link in (self._below, self._above):
            if link:
                link.flush()
        if self._layout.stages > 1:
            for t, block in enumerate(self._all):
                for tensor in block.state_dict().values():
                    self._world.broadcast(tensor, self._layout.owner(t))

    def _up(self, flight: Flight) -> None:
        """Seed the auxiliaries of a batch and send the last ones on. The batches in flight before it will each have
        moved the weights when it comes down: it goes up with the weights expected then.
        """
        if self._below:
            start = self._below.receive(self._shape(self._owned[0], flight), self._dtype, UP)
        else:
            start = self._loss.inputs(flight.batch).to(self._dtype)
        self._seed(flight, start, ahead=len(self._flights) if self._config.accumulate == 1 else 0)
        if self._above:
            self._above.send(flight.anchors[-1], UP, self._message(flight))

    def _seed(self, flight: Flight, start: Tensor, ahead: int = 0) -> None:
        """Each block's outputs, plus the dual, are the next one's inputs; with the weights of ``ahead`` steps on."""
        indices = flight.batch.indices
        flight.inputs, flight.anchors, flight.duals = [], [start], []
        for t, block in zip(self._owned, self._blocks, strict=True):
            z = flight.anchors[-1]
            if self._config.auxiliaries != "seeded" and t > 0:
                known = self._stored[t].known(indices).to(z.device)
                z = self._start(t, flight.batch) if self._first and not known.all() else z
                z = torch.where(known.view(-1, *[1] * (z.dim() - 1)), self._stored[t].read(indices), z)
            flight.inputs.append(z)
            if t in self._duals:
                flight.duals.append(self._duals[t].read(indices) / flight.rho)
                flight.anchors.append(block.forward(z, ahead) + flight.duals[-1])

    @torch.no_grad()
    def _start(self, t: int, batch: Batch) -> Tensor:
        """Inputs of block t in a sweep with the first weights."""
        z = self._loss.inputs(batch).to(self._dtype)
        for block in self._first[:t]:
            z = block(z)
        return z

    def _land(self, visits: int) -> Flight:
        """Take the oldest flight down and learn from it; ``visits`` of them make an update."""
        flight = self._flights.popleft()
        with self._clock("backward"):
            flight.goals = self._down(flight)
        with self._clock("update"):
            if flight.part == 0:
                for block in self._blocks:
                    block.begin(visits)
            weight = flight.batch.weight
            for block, z, goal in zip(self._blocks, flight.inputs, flight.goals, strict=True):
                flight.loss = block.learn(z, goal, weight)
        return flight

    def _update(self, landed: Sequence[Flight]) -> StepStats:
        """Step the parameters, then the duals."""
        rate = self._config.learning_rate(landed[0].number, self._steps)
        with self._clock("update"):
            for block in self._blocks:
                block.update(rate)
            missed, scale = (sum(column) for column in zip(*map(self._update_duals, landed), strict=True))
        loss = sum(flight.loss for flight in landed) if self._is_last else 0.0
        return StepStats(loss, rate, {"residual": missed / scale if scale else 0.0})

    def _down(self, flight: Flight) -> list[Goal]:
        """Move the auxiliaries, the last boundary first; give each block's goal."""
        config, batch = self._config, flight.batch
        goal: Goal
        if self._above:
            shape = self._shape(self._owned[-1] + 1, flight)
            above = self._above.receive(shape, self._dtype, DOWN, flight.anchors[-1])
            if self._delay and config.accumulate == 1:
                # The weights are not those that the batch went up with. The rank above moved z away from what it got
                # then; the same move away from what they give now keeps z from calling the newer updates back.
                then = flight.anchors[-1]
                self._seed(flight, flight.anchors[0])
                above = above + (flight.anchors[-1] - then)
            goal = Match(above - flight.duals[-1], flight.rho)
        else:
            goal = Fit(self._loss.criterion, batch, config.criterion_curvature)
        goals = [goal]
        for i in reversed(range(len(self._blocks))):
            block, goal = self._blocks[i], goals[0]
            if self._owned[i] == 0:
                break
            if flight.number % config.measure_every == 0 and flight.part == 0:
                block.measure(flight.inputs[i], batch.weight)
            flight.inputs[i] = block.pull(
                flight.inputs[i], flight.anchors[i], flight.rho, goal, config.z_steps, backtrack=config.backtrack
            )
            if i > 0:
                goals.insert(0, Match(flight.inputs[i] - flight.duals[i - 1], flight.rho))
        if self._below:
            self._below.send(flight.inputs[0], DOWN, self._message(flight), flight.anchors[0])
        if config.auxiliaries != "seeded":
            for t, z in zip(self._owned, flight.inputs, strict=True):
                if t > 0:
                    self._stored[t].write(batch.indices, z)
        return goals

    def _update_duals(self, flight: Flight) -> tuple[float, float]:
        """Step the duals; give |f(z) - z'|^2 and |z'|^2 over this rank's boundaries, after the other updates."""
        missed = scale = 0.0
        for t, block, z, goal, dual in zip(
            self._owned, self._blocks, flight.inputs, flight.goals, flight.duals, strict=False
        ):
            if not isinstance(goal, Match):
                continue
            above = goal.target + dual
            gap = block.forward(z) - above
            missed += float(gap.square().sum())
            scale += float(above.square().sum())
            if self._config.form == "batch" and self._config.dual_step:
                multiplier = flight.rho * (dual + self._config.dual_step * gap)
                self._duals[t].write(flight.batch.indices, multiplier)
        return missed, scale

    def _link(self, neighbour: int) -> Link:
        c = self._config
        under_way = max(c.in_flight, c.accumulate)
        return Link(self._world, neighbour, c.codec, c.codec_seed, under_way, self._clock, self._device)

    def _message(self, flight: Flight) -> int:
        return flight.number * self._config.accumulate + flight.part

    def _shape(self, t: int, flight: Flight) -> tuple[int, ...]:
        return (len(flight.batch), *self._shapes[t])

    def plan(self, flops: float) -> dict[str, str]:
        layout, per_sample = self._layout, 0
        for t in self._owned:
            per_sample += (t == self._owned[0] and t > 0) * self._shapes[t].numel()
            per_sample += (t == self._owned[-1] and t in self._duals) * self._shapes[t + 1].numel()
        return {
            "parameters": f"{sum(p.numel() for p in self.model.parameters()):,}",
            "blocks": f"{len(self._all)} on {layout.stages} ranks, {layout.groups} data groups of those",
            "in flight": f"{self._config.in_flight} batches of {self._config.accumulate} micro-batches",
            "bytes a step": f"{per_sample * self._dtype.itemsize:,} a sample sent by this rank for its boundaries",
        }

    def state_dict(self) -> Tree:
        layout = self._layout
        models = {"model": self.model.state_dict(), "first": self._first.state_dict()}
        return {"step": self._step, **models, "ranks": [layout.size, layout.stages]}

    def rank_state_dict(self) -> Tree:
        return {
            "blocks": {str(t): block.state_dict() for t, block in zip(self._owned, self._blocks, strict=True)},
            "exchanges": {
                str(t): block.exchange_state_dict() for t, block in zip(self._owned, self._blocks, strict=True)
            },
            "multipliers": {str(t): table.state_dict() for t, table in self._duals.items()},
            "auxiliaries": {str(t): table.state_dict() for t, table in self._stored.items()},
        }

    def load_state_dict(self, shared: Tree, parts: Sequence[Tree]) -> None:
        size, stages = shared["ranks"]
        same = (size, stages) == (self._layout.size, self._layout.stages)
        try:
            with torch.no_grad():
                self.model.load_state_dict(shared["model"])
                self._first.load_state_dict(shared["first"])
            for t, block in zip(self._owned, self._blocks, strict=True):
                first = Layout(0, size, len(self._all), stages).owner(t)
                peers = Chosen(parts, range(first, size, stages))
                block.load_state_dict(peers[0]["blocks"][str(t)], Entries(Entries(peers, "exchanges"), str(t)))
            for part in [parts[self._world.rank]] if same else parts:
                for name, tables in (("multipliers", self._duals), ("auxiliaries", self._stored)):
                    for t, table in tables.items():
                        if str(t) in part[name]:
                            table.add_state_dict(part[name][str(t)])
        except (KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"the checkpoint does not fit the job's model or blocks: {error}") from error
        self._step = shared["step"]
