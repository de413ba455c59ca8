"""Leader SGD: every rank trains on its own and is pulled to the rank whose loss is smallest.

Teng et al. 2019, arXiv:1905.10395: ``x_i <- x_i - lr g_i - pull (x_i - x~)``, x~ being the parameters of the rank with
the smallest running loss; with groups, of the group's leader and, more seldom, of the leader of all. Only a leader's
parameters travel. The leader itself is not pulled; a rank whose loss or parameters are not finite never leads.
"""

import math
from collections import deque
from collections.abc import Sequence
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from hpcopt.compress import Codec, Dense
from hpcopt.errors import DivergedError, JobError, fitting
from hpcopt.families import CODECS
from hpcopt.optim.state import optimizer_state, restore_optimizer
from hpcopt.shapes.batch import Batch
from hpcopt.shapes.context import Context
from hpcopt.shapes.solver import Solver, SolverConfig, Task, Tree
from hpcopt.shapes.stats import Scalar, StepStats
from hpcopt.solvers.aside import Aside
from hpcopt.solvers.first_order import FirstOrder
from hpcopt.solvers.leader.level import BROKEN, Level
from hpcopt.solvers.mixing import flatten
from hpcopt.solvers.own_steps import OwnSteps


class LeaderConfig(SolverConfig, FirstOrder):
    """Ranks train on their own and are pulled to the best of them. Only its parameters travel."""

    name: Literal["leader"] = "leader"
    every: int = Field(4, ge=1, description="steps between announcements of the leader of a group, or of all")
    pull: float = Field(0.1, gt=0, lt=1, description="share of the way to it")
    group: int | None = Field(None, ge=1, description="ranks in a group; by default those of a host")
    global_every: int | None = Field(
        None,
        ge=1,
        description="with several groups: steps between those of the leader of all; by default 4 times every",
    )
    global_pull: float = Field(0.1, gt=0, lt=1, description="share of the way to the leader of all")
    form: Literal["round", "step", "gradient"] = Field(
        "round",
        description="pull at each announcement; at each step, to the last one; or in the gradient, with its momentum",
    )
    window: int = Field(16, ge=1, description="steps over which a rank's loss is averaged")
    codec: Annotated[Codec, CODECS] = Field(Dense(), description="of the leader's parameters")
    not_finite: Literal["end", "leave_out"] = Field(
        "end", description="a rank whose parameters are not finite ends the job, or begins anew from the leader's"
    )

    @model_validator(mode="after")
    def _periods_fit(self) -> Self:
        if self.global_period % self.every:
            raise ValueError(f"global_every = {self.global_every} is no multiple of every = {self.every}")
        return self

    @property
    def global_period(self) -> int:
        """``global_every``, or what stands for it."""
        return self.global_every or 4 * self.every

    @property
    def needs(self) -> frozenset[str]:
        return frozenset()

    def build(self, task: Task, context: Context) -> "LeaderSgd":
        """Make the solver. Collective.

        Raises:
            JobError: the model is not of float32.
        """
        return LeaderSgd(self, task, context)


class LeaderSgd(Solver):
    """The solver."""

    lockstep = False

    def __init__(self, config: LeaderConfig, task: Task, context: Context) -> None:
        """Start from rank 0's parameters. Collective."""
        self.model, self._config, self._clock, self._world = task.model, config, context.clock, context.world
        self.data_rank, self.data_size = context.world.rank, context.world.size
        context.world.start_alike(list(self.model.state_dict().values()), True)
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        if any(p.dtype != torch.float32 for p in parameters):
            raise JobError('[solver] name = "leader" needs float32 parameters').everywhere()
        self._x = flatten(parameters)
        self._parameters = parameters
        self._own = OwnSteps(config, task, context)
        self._levels = self._make_levels(context.seed("leader"))
        self._losses: deque[float] = deque(maxlen=config.window)
        self._aside = Aside()
        self._step = 0

    def _make_levels(self, seed: int) -> list[Level]:
        """The group's, if there are several groups of several ranks, and that of all."""
        config, world = self._config, self._world
        color = world.node if config.group is None else world.rank // config.group
        groups = len(set(world.all_gather(torch.tensor([color])).ravel().tolist()))
        if groups in (1, world.size):
            return [Level(world, self._x, every=config.every, pull=config.pull, codec=config.codec, seed=seed)]
        group = world.split(color, world.rank)
        return [
            Level(group, self._x, every=config.every, pull=config.pull, codec=config.codec, seed=seed + color),
            Level(
                world, self._x, every=config.global_period, pull=config.global_pull, codec=config.codec, seed=seed - 1
            ),
        ]

    def step(self, batch: Batch) -> StepStats:
        self._aside.restore()
        loss: float | None = float(self._own.backward(batch))
        if len(batch):
            self._losses.append((loss or 0.0) / batch.weight)
        with self._clock("update"):
            lr = self._update()
        self._step += 1
        due = [level for level in self._levels if self._step % level.every == 0]
        if due:
            self._meet(due)
        if self._config.not_finite == "leave_out" and not math.isfinite(loss or 0.0):
            loss = None  # of a rank that begins anew
        leader = self._levels[-1].leader
        return StepStats(loss, lr, {} if leader is None or not due else {"leader": Scalar(leader, "max")})

    def _update(self) -> float:
        pulled = [level for level in self._levels if level.pulls]
        if self._config.form == "gradient":
            for p in self._parameters:
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            for level in pulled:
                self._add_to_gradients((self._x - level.target).mul_(level.pull))
        before = self._x.clone() if self._config.form == "step" else self._x
        lr = self._own.update(self._step)
        if self._config.form == "step":
            for level in pulled:
                self._x.add_(level.target - before, alpha=level.pull)
        return lr

    def _meet(self, due: Sequence[Level]) -> None:
        """Announce leaders, and be pulled to them. Collective: over each level's ranks."""
        finite = bool(self._x.isfinite().all())
        with self._clock("exchange"):
            for level in due:
                level.announce(self._step, self._running_loss() if finite else BROKEN, self._x)
        broken = sorted({rank for level in due for rank in level.broken})
        if broken and self._config.not_finite == "end":
            error = DivergedError(
                f"after step {self._step} the parameters of ranks {broken} are not finite: lower the learning rate, "
                'clip the gradient, or let such ranks begin anew with not_finite = "leave_out"'
            )
            error.on_every_rank = len(due) == len(self._levels)
            raise error
        if not finite:
            self._begin_anew(due)
        elif self._config.form == "round":
            before = self._x.clone()
            for level in due:
                if level.pulls:
                    self._x.add_(level.target - before, alpha=level.pull)

    def _begin_anew(self, due: Sequence[Level]) -> None:
        """From the leader's parameters, or where the last one was, with an optimizer and losses as at the start."""
        self._x.copy_(due[-1].target)
        self._own.optimizer.state.clear()
        self._losses.clear()

    def _running_loss(self) -> float:
        """The mean of the last steps'; NaN, which never leads, if there is none."""
        mean = sum(self._losses) / len(self._losses) if self._losses else math.nan
        return mean if math.isfinite(mean) else math.nan

    def _add_to_gradients(self, flat: Tensor) -> None:
        for p, piece in zip(self._parameters, torch.split(flat, [p.numel() for p in self._parameters]), strict=True):
            assert p.grad is not None
            p.grad.add_(piece.view_as(p))

    def gather(self) -> None:
        """Put the best rank's parameters and buffers into the model, until the next step. Collective.

        Raises:
            DivergedError: on all ranks: no rank's parameters are finite.
        """
        self._aside.restore()
        finite = bool(self._x.isfinite().all())
        mine = self._running_loss() if finite else BROKEN
        losses = self._world.all_gather(torch.tensor([mine], dtype=torch.float64)).ravel().tolist()
        able = [rank for rank, loss in enumerate(losses) if loss != BROKEN]
        if not able:
            raise DivergedError("no rank's parameters are finite: lower the learning rate, or clip the gradient")
        best = min(able, key=lambda rank: (math.isnan(losses[rank]), losses[rank] if losses[rank] < BROKEN else 0.0))
        tensors = [self._x, *self.model.buffers()]
        shown = {tensor: self._world.broadcast(tensor.detach().clone(), best) for tensor in tensors}
        self._aside.show(shown)

    def plan(self, flops: float) -> dict[str, str]:
        lines = {"parameters": f"{self._x.numel():,}"}
        names = ["leader"] if len(self._levels) == 1 else ["group's leader", "leader of all"]
        for name, level in zip(names, self._levels, strict=True):
            lines[name] = f"every {level.every} steps, which then sends {level.planned_bytes():,} bytes"
        return lines

    def state_dict(self) -> Tree:
        """With the best rank's model, as of ``gather``."""
        return {"step": self._step, "model": self.model.state_dict()}

    def rank_state_dict(self) -> Tree:
        return {
            "own": [self._aside.own(tensor) for tensor in (self._x, *self.model.buffers())],
            "optimizer": optimizer_state(self._own.optimizer),
            "levels": [level.rank_state_dict() for level in self._levels],
            "losses": list(self._losses),
        }

    def load_state_dict(self, shared: Tree, parts: Sequence[Tree]) -> None:
        """With another number of ranks than saved, all go on from the best rank's parameters, without a leader until
        the next announcement; rank r takes the inner optimizer of old rank ``r % P``.
        """
        with fitting("the job's model, optimizer or groups"), torch.no_grad():
            self._aside.forget()
            self.model.load_state_dict(shared["model"])
            own = parts[self._world.rank % len(parts)]
            restore_optimizer(self._own.optimizer, own["optimizer"])
            self._losses.clear()
            if len(parts) == self._world.size:
                for tensor, value in zip((self._x, *self.model.buffers()), own["own"], strict=True):
                    tensor.copy_(value)
                for level, state in zip(self._levels, own["levels"], strict=True):
                    level.load_state_dict(state)
                self._losses.extend(own["losses"])
            else:
                for level in self._levels:
                    level.target.copy_(self._x)
            self._step = shared["step"]
