"""A stage: the blocks that a rank holds, and what one batch does to them.

The blocks f_1 .. f_T with parameters th_t are tied by auxiliaries z_t, one vector for each sample and boundary::

    min  sum_i loss(f_T(z_{T-1,i}), y_i)   so that  z_{t,i} = f_t(z_{t-1,i}),  z_{0,i} = x_i

whose augmented Lagrangian, with u the multipliers divided by rho, is::

    L = sum_i loss(f_T(z_{T-1,i}), y_i) + sum_{t<T} rho/2 |f_t(z_{t-1,i}) - z_{t,i} + u_{t,i}|^2 - rho/2 |u_{t,i}|^2

One batch goes up and down the blocks once:

1. up:    z_t <- f_t(z_{t-1}) + u_t                 seed the auxiliaries with the present weights
2. down:  z_t <- prox-linear steps on L             from the last boundary to the first, with the new z_{t+1}
3. each block on its own: one optimizer step on its term of L
4. each boundary:  u_t <- u_t + f_t(z_{t-1}) - z_t

The batch form keeps u_t for every sample; the online form, for data seen once, has u = 0 and keeps nothing.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from hpcopt.families import OPTIMIZERS
from hpcopt.optim import OptimizerConfig
from hpcopt.optim.first_order import AdamWConfig
from hpcopt.pipeline.cut import output_shapes
from hpcopt.shapes.batch import TensorBatch
from hpcopt.shapes.loss import OutputLoss
from hpcopt.shapes.solver import Tree
from hpcopt.solvers.block_admm.block import Block
from hpcopt.solvers.block_admm.goal import Goal, Match
from hpcopt.solvers.block_admm.samples import SampleTable
from hpcopt.solvers.first_order import Scheduled
from hpcopt.store.saved_parts import SavedParts


class AdmmConfig(Scheduled):
    """What a batch does to the blocks, wherever they are."""

    optimizer: Annotated[OptimizerConfig, OPTIMIZERS] = Field(
        AdamWConfig(weight_decay=0), description="the optimizer that every block has"
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

    batch: TensorBatch
    number: int
    part: int
    rho: float
    inputs: list[Tensor] = field(default_factory=list)
    anchors: list[Tensor] = field(default_factory=list)
    duals: list[Tensor] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    loss: float = 0.0


class Stage:
    """Consecutive blocks on one rank, with the duals and the auxiliaries at their boundaries.

    Attributes:
        owned: which blocks of the network they are.
        shapes: of one sample's inputs of every block of the network, and of its outputs.
    """

    def __init__(
        self,
        config: AdmmConfig,
        loss: OutputLoss,
        example: Tensor,
        network: Sequence[nn.Module],
        owned: range,
        blocks: list[Block],
    ) -> None:
        """``network`` are the layers of all blocks; the example's dtype is that of all auxiliaries."""
        self.owned, self.blocks = owned, blocks
        self.shapes = [example.shape[1:], *output_shapes(network, example)]
        self._config, self._loss, self._dtype = config, loss, example.dtype
        self._first = nn.ModuleList(copy.deepcopy(list(network)) if config.auxiliaries == "stored" else [])

        def table(boundary: int) -> SampleTable:
            """A row for each sample: a vector at a boundary, of which t lies below block t and t + 1 above it."""
            return SampleTable(self.shapes[boundary], example.dtype, example.device)

        self._multipliers = {t: table(t + 1) for t in owned if t + 1 < len(network)}  # rho u of block t's outputs
        self._auxiliaries = {t: table(t) for t in owned if t > 0}  # block t's inputs; those of block 0 are the samples

    def inputs(self, batch: TensorBatch) -> Tensor:
        """What the first block of the network gets."""
        return self._loss.inputs(batch).to(self._dtype)

    def seed(self, flight: Flight, start: Tensor, ahead: int = 0) -> None:
        """Each block's outputs, plus the dual, are the next one's inputs; with the weights of ``ahead`` steps on."""
        flight.inputs, flight.anchors, flight.duals = [], [start], []
        for t, block in zip(self.owned, self.blocks, strict=True):
            z = flight.anchors[-1]
            if self._config.auxiliaries != "seeded" and t > 0:
                z = self._revisited(t, flight.batch, z)
            flight.inputs.append(z)
            if t in self._multipliers:
                flight.duals.append(self._multipliers[t].read(flight.batch.indices) / flight.rho)
                flight.anchors.append(block.forward(z, ahead) + flight.duals[-1])

    def _revisited(self, t: int, batch: TensorBatch, swept: Tensor) -> Tensor:
        """Inputs of block t as the last visit left them; of samples that come for the first time those of a sweep, with
        the first weights if these are kept, else ``swept``.
        """
        table = self._auxiliaries[t]
        known = table.known(batch.indices).to(swept.device)
        if self._first and not known.all():
            swept = self._start(t, batch)
        return torch.where(known.view(-1, *[1] * (swept.dim() - 1)), table.read(batch.indices), swept)

    @torch.no_grad()
    def _start(self, t: int, batch: TensorBatch) -> Tensor:
        """Inputs of block t in a sweep with the first weights."""
        z = self.inputs(batch)
        for block in self._first[:t]:
            z = block(z)
        return z

    def down(self, flight: Flight, goal: Goal) -> None:
        """Move the auxiliaries, the last boundary first, given the goal of the last block; they are the other goals."""
        config = self._config
        flight.goals = [goal]
        for i in reversed(range(len(self.blocks))):
            block, goal = self.blocks[i], flight.goals[0]
            if self.owned[i] == 0:
                break
            if flight.number % config.measure_every == 0 and flight.part == 0:
                block.measure(flight.inputs[i], flight.batch.weight)
            flight.inputs[i] = block.pull(
                flight.inputs[i], flight.anchors[i], flight.rho, goal, config.z_steps, backtrack=config.backtrack
            )
            if i > 0:
                flight.goals.insert(0, Match(flight.inputs[i] - flight.duals[i - 1], flight.rho))
        if config.auxiliaries != "seeded":
            for t, z in zip(self.owned, flight.inputs, strict=True):
                if t > 0:
                    self._auxiliaries[t].write(flight.batch.indices, z)

    def learn(self, flight: Flight, visits: int) -> None:
        """Add a flight that is down to the blocks' gradients; ``visits`` of them make an update."""
        if flight.part == 0:
            for block in self.blocks:
                block.begin(visits)
        for block, z, goal in zip(self.blocks, flight.inputs, flight.goals, strict=True):
            flight.loss = block.learn(z, goal, flight.batch.weight)

    def update(self, landed: Sequence[Flight], rate: float) -> float:
        """Step the parameters, then the duals; give |f(z) - z'|^2 as a part of |z'|^2, over this stage's boundaries and
        after the updates.
        """
        for block in self.blocks:
            block.update(rate)
        missed, scale = (sum(column) for column in zip(*map(self._update_duals, landed), strict=True))
        return missed / scale if scale else 0.0

    def _update_duals(self, flight: Flight) -> tuple[float, float]:
        missed = scale = 0.0
        for t, block, z, goal, dual in zip(
            self.owned, self.blocks, flight.inputs, flight.goals, flight.duals, strict=False
        ):
            if not isinstance(goal, Match):
                continue
            above = goal.target + dual
            gap = block.forward(z) - above
            missed += float(gap.square().sum())
            scale += float(above.square().sum())
            if self._config.form == "batch" and self._config.dual_step:
                multiplier = flight.rho * (dual + self._config.dual_step * gap)
                self._multipliers[t].write(flight.batch.indices, multiplier)
        return missed, scale

    def first_state_dict(self) -> Tree:
        """The first weights of the whole network, where stored auxiliaries start from them."""
        return self._first.state_dict()

    def rank_state_dict(self) -> Tree:
        """What this rank alone holds, but for the parameters."""
        return {
            "blocks": {str(t): block.state_dict() for t, block in zip(self.owned, self.blocks, strict=True)},
            "exchanges": {
                str(t): block.exchange_state_dict() for t, block in zip(self.owned, self.blocks, strict=True)
            },
            "multipliers": {str(t): table.state_dict() for t, table in self._multipliers.items()},
            "auxiliaries": {str(t): table.state_dict() for t, table in self._auxiliaries.items()},
        }

    def load_state_dict(self, first: Tree, peers: Callable[[int], SavedParts], tables: Iterable[Tree]) -> None:
        """Restore the first weights; each block from the parts of all ranks that held it; the tables from the parts of
        whoever may hold a row.
        """
        self._first.load_state_dict(first)
        for t, block in zip(self.owned, self.blocks, strict=True):
            holders = peers(t)
            block.load_state_dict(holders[0]["blocks"][str(t)], holders.under("exchanges", str(t)))
        for part in tables:
            for name, mine in (("multipliers", self._multipliers), ("auxiliaries", self._auxiliaries)):
                for t, table in mine.items():
                    if str(t) in part[name]:
                        table.add_state_dict(part[name][str(t)])
