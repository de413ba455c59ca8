"""GIST as a job's solver (Wolfe et al. 2021, arXiv:2102.10424).

The units of every hidden layer l are dealt into m disjoint chunks C_l^1 .. C_l^m, drawn anew each round. Sub-network j
has the units C_l^j: of a hidden matrix it trains W_l[C_{l+1}^j, C_l^j], 1/m^2 of it; inputs and outputs are not cut.
Each takes ``every`` steps by itself on the same batches, with an optimizer that is new in each round. Its values are
those of the network, so there is nothing to write back; the output's bias, which all have, is averaged. A norm's gain
and bias go with their unit, and within a round it norms over the units of the sub-network.

With one part there is nothing to deal anew: it is plain training, whose optimizer goes on.
"""

from collections.abc import Iterator, Sequence
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from hpcopt.errors import JobError, fitting
from hpcopt.models.hidden import widths
from hpcopt.optim.groups import set_learning_rate
from hpcopt.optim.state import optimizer_state, restore_optimizer
from hpcopt.shapes.batch import Batch
from hpcopt.shapes.context import Context
from hpcopt.shapes.solver import Solver, SolverConfig, Task, Tree, optimizer_tensors
from hpcopt.shapes.stats import StepStats
from hpcopt.solvers.first_order import FirstOrder
from hpcopt.solvers.gist.arrangement import Arrangement, members
from hpcopt.solvers.gist.cell import Cell, Place
from hpcopt.solvers.gist.saved import resharded
from hpcopt.solvers.gist.sharded_model import ShardedModel
from hpcopt.solvers.gist.travel import rearrange
from hpcopt.solvers.gist.whole import gather_whole, mean_of_shared
from hpcopt.store.saved_parts import SavedParts


class GistConfig(SolverConfig, FirstOrder):
    """Sub-networks of disjoint hidden units, trained apart and dealt anew each round."""

    name: Literal["gist"] = "gist"
    parts: int | None = Field(None, ge=1, description="sub-networks, m; off: one for each rank")
    every: int = Field(10, ge=1, description="steps of a round")
    ultra_wide: bool = Field(
        False, description="no rank ever holds the whole network: one part a rank, and it is evaluated in shards"
    )

    @property
    def needs(self) -> frozenset[str]:
        return frozenset()

    @model_validator(mode="after")
    def _one_part_a_rank(self) -> Self:
        if self.ultra_wide and self.parts is not None:
            raise ValueError("ultra_wide has one part for each rank: leave parts out")
        return self

    def build(self, task: Task, context: Context) -> "Gist":
        """Make the solver. Collective.

        Raises:
            JobError: the network does not say where its hidden units lie, has buffers, or fewer units than parts; it is
                on no device but should be whole, or the other way round.
        """
        return Gist(self, task, context)


class Gist(Solver):
    """The solver.

    Attributes:
        cells: the values of this rank's sub-networks.
    """

    def __init__(self, config: GistConfig, task: Task, context: Context) -> None:
        """Start from rank 0's parameters; with ``ultra_wide`` from values drawn for each unit. Collective."""
        world = context.world
        self._config, self._world, self._clock, self._loss = config, world, context.clock, task.loss
        self._seed, self._steps, self._step = context.seed("gist"), context.total_steps, 0
        self._round, self._begin, parts = 0, 0, config.parts or world.size
        self._check(task.model, config, parts)
        self._places, self._members = Place.all_of(task.model), members(parts, world.size)
        self._widths = tuple(widths(task.model))
        mine = [part for part, ranks in enumerate(self._members) if world.rank in ranks]
        ranks = self._members[mine[0]]
        self.data_rank, self.data_size = ranks.index(world.rank), len(ranks)
        self._group = world.split(mine[0]) if parts < world.size else None
        self.cells = [Cell(task.model, self._places, part, context.device) for part in mine]
        self._arrangement = Arrangement(self._widths, parts, self._seed, 0)
        if config.ultra_wide:
            for cell in self.cells:
                cell.draw(self._arrangement, context.run_seed)
            self.model: nn.Module = ShardedModel(world, task.model, self._places, self.cells[0])
        else:
            self.model = task.model
            world.start_alike(list(task.model.state_dict().values()), True)
            for cell in self.cells:
                cell.take(dict(task.model.named_parameters()), self._arrangement)
        self._renew()

    def step(self, batch: Batch) -> StepStats:
        lr, total = self._config.learning_rate(self._step, self._steps), 0.0
        for cell, optimizer in zip(self.cells, self._own, strict=True):
            total += self._gradient(cell.module, optimizer, batch) / len(self._members)
            with self._clock("update"):
                if self._config.clip_norm is not None:
                    nn.utils.clip_grad_norm_(cell.module.parameters(), self._config.clip_norm)
                set_learning_rate(optimizer, lr)
                optimizer.step()
        self._step += 1
        if self._step - self._begin >= self._config.every:
            with self._clock("exchange"):
                self._next_round()
        return StepStats(total, lr)

    def _gradient(self, module: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch) -> float:
        """Leave the gradient of a sub-network's mean loss; give this rank's summand of the loss. Collective, where
        several ranks share a sub-network.
        """
        optimizer.zero_grad()
        total = 0.0
        for micro in batch.split(self._config.accumulate):
            with self._clock("forward"):
                loss = self._loss(module, micro) * micro.weight
            with self._clock("backward"):
                loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        if self._group is not None and self._group.size > 1:
            with self._clock("exchange"):
                for p in module.parameters():
                    summed = torch.zeros_like(p) if p.grad is None else p.grad
                    p.grad = self._group.all_reduce(summed.contiguous())
        return total

    def _next_round(self) -> None:
        """Average what all sub-networks have, and deal the units anew. Collective."""
        self._begin = self._step
        if len(self._members) == 1:
            return
        for name, mean in mean_of_shared(self._world, self.cells, self._places, self._members).items():
            for cell in self.cells:
                cell.held[name].copy_(mean)
        self._round += 1
        old, self._arrangement = self._arrangement, self._arranged(self._round)
        rearrange(self._world, self.cells, self._places, self._members, old, self._arrangement)
        self._renew()

    def _arranged(self, number: int) -> Arrangement:
        return Arrangement(self._widths, len(self._members), self._seed, number)

    def _renew(self) -> None:
        self._own = [self._config.optimizer_of(cell.module) for cell in self.cells]

    def gather(self) -> None:
        """Put all values, and the means of what all sub-networks have, into the model; training goes on from its own.
        With ``ultra_wide`` the model reads them where they are. Collective.
        """
        shared = mean_of_shared(self._world, self.cells, self._places, self._members)
        if isinstance(self.model, ShardedModel):
            self.model.follow(self._arrangement, shared)
        else:
            gather_whole(self._world, self.model, self.cells, self._places, self._members, self._arrangement, shared)

    def must_be_finite(self) -> Iterator[tuple[str, Tensor]]:
        """What this rank holds, and what its optimizers keep."""
        for cell in self.cells:
            yield from cell.held.items()
        for optimizer in self._own:
            yield from optimizer_tensors(optimizer)

    def plan(self, flops: float) -> dict[str, str]:
        parameters = sum(p.numel() for p in self.model.parameters())
        if isinstance(self.model, ShardedModel):
            parameters = self.model.whole_size
        held = sum(x.numel() for cell in self.cells for x in cell.held.values())
        trained = sum(p.numel() for cell in self.cells for p in cell.module.parameters())
        parts = len(self._members)
        split = sum(x.numel() * x.element_size() for x in self.cells[0].held.values()) * len(self.cells)
        return {
            "parameters": f"{parameters:,}",
            "sub-networks": f"{parts}, dealt anew every {self._config.every} steps",
            "parameters held": f"{held:,} on this rank, {trained:,} of them trained in a round",
            "bytes a round": f"about {round(split * (1 - 1 / parts)):,} sent by each rank",
        }

    def state_dict(self) -> Tree:
        state = {
            "step": self._step,
            "begin": self._begin,
            "round": self._round,
            "seed": self._seed,
            "parts": len(self._members),
            "widths": list(self._widths),
        }
        return state if self._config.ultra_wide else {**state, "model": self.model.state_dict()}

    def rank_state_dict(self) -> Tree:
        if self.data_rank > 0:
            return {"cells": {}}
        pairs = zip(self.cells, self._own, strict=True)
        return {"cells": {str(c.part): {"held": c.held, "optimizer": optimizer_state(o)} for c, o in pairs}}

    def load_state_dict(self, shared: Tree, parts: Sequence[Tree]) -> None:
        """With another number of sub-networks than saved, a round begins, with new optimizers."""
        with fitting("the job's model, its optimizer or gist"), torch.no_grad():
            if tuple(shared["widths"]) != self._widths:
                raise ValueError(f"hidden layers of {shared['widths']} units, not {list(self._widths)}")
            if not self._config.ultra_wide:
                self.model.load_state_dict(shared["model"])
            self._step, self._begin, self._round = shared["step"], shared["begin"], shared["round"]
            self._seed = shared["seed"]
            old = Arrangement(self._widths, shared["parts"], self._seed, self._round)
            self._take_over(old, SavedParts.of(parts).under("cells"))

    def _take_over(self, old: Arrangement, saved: SavedParts) -> None:
        """Fill this rank's cells from those of all ranks that saved."""
        holders, same = [ranks[0] for ranks in members(old.parts, len(saved))], old.parts == len(self._members)
        if not same:
            self._begin, self._round = self._step, self._round + 1
        self._arrangement = self._arranged(self._round)
        for cell in self.cells:
            wanted = [cell.part] if same else range(old.parts)
            found = {part: saved[holders[part]][str(part)]["held"] for part in wanted}
            cell.adopt(found[cell.part] if same else resharded(found, self._places, old, self._arrangement, cell.part))
            cell.expose(self._arrangement)
        self._renew()
        for cell, optimizer in zip(self.cells, self._own, strict=True):
            if same:
                restore_optimizer(optimizer, saved[holders[cell.part]][str(cell.part)]["optimizer"])

    def _check(self, model: nn.Module, config: GistConfig, parts: int) -> None:
        nowhere = any(p.is_meta for p in model.parameters())
        if nowhere != config.ultra_wide:
            raise JobError(
                "ultra_wide is for a network without parameters: say [workload] allocate = false"
                if config.ultra_wide
                else "the network has no parameters: allocate = true, or [solver] ultra_wide = true"
            ).everywhere()
        if list(model.buffers()):
            raise JobError("gist cuts parameters, and this network has buffers: norm by LayerNorm").everywhere()
        if (least := min(widths(model))) < parts:
            raise JobError(
                f"[solver] parts = {parts}, but a hidden layer has {least} units: each sub-network needs one"
            ).everywhere()
