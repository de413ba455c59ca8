"""Local steps as a job's solver: ``hpcopt.solvers.local.steps`` has the method."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, SupportsFloat

from hpcopt.shapes.batch import Batch
from hpcopt.shapes.context import Context
from hpcopt.shapes.solver import Solver, SolverConfig, Task, Tree
from hpcopt.shapes.stats import Rows, StepStats
from hpcopt.solvers import absences
from hpcopt.solvers.first_order import FirstOrder
from hpcopt.solvers.local.steps import LocalSteps, LocalStepsConfig
from hpcopt.solvers.own_steps import OwnSteps


class LocalConfig(SolverConfig, FirstOrder, LocalStepsConfig):
    """Ranks train on their own and average their changes now and then: few bytes, and no waiting in between."""

    name: Literal["local"] = "local"

    @property
    def needs(self) -> frozenset[str]:
        """Sums of changes, or nothing with gossip."""
        return frozenset({"sums"} if self.gossip is None else ())

    def build(self, task: Task, context: Context) -> "LocalSgd":
        """Make the solver. Collective.

        Raises:
            JobError: gossip, and the model is not of float32 or the graph's file does not fit the ranks.
        """
        return LocalSgd(self, task, context)


class LocalSgd(Solver):
    """The solver."""

    lockstep = False

    def __init__(self, config: LocalConfig, task: Task, context: Context) -> None:
        """Start from rank 0's parameters. Collective."""
        self.model, self._config, self._clock = task.model, config, context.clock
        self.data_rank, self.data_size = context.world.rank, context.world.size
        self.pipelined = config.gossip is not None and config.gossip.tau > 0
        self._own = OwnSteps(config, task, context)
        self._local = LocalSteps(
            task.model,
            self._own.optimizer,
            config,
            world=context.world,
            exchange=context.required_exchange if config.gossip is None else None,
            steps=context.total_steps,
            seed=context.seed("local"),
            clock=context.clock,
        )
        self.roll_call = self._local.roll_call
        self._loss: SupportsFloat | None = None  # of the newest step for which this rank had one
        self._step = 0

    def step(self, batch: Batch) -> StepStats:
        self._local.go_on()
        late, loss = self._local.decided(), self._loss
        if not late:
            loss = self._own.backward(batch)
        with self._clock("update"):
            lr = None if late else self._own.update(self._step)
            landed = self._local.step(batch.weight)
        self._step += 1
        if self._config.not_finite == "leave_out" and not math.isfinite(loss or 0.0):
            loss = None  # of a rank that will be left out
        self._loss = loss
        told = absences.told(self._local.roll_call if landed else None)
        tables: dict[str, Rows] = told["tables"]
        if landed and self._local.left_out:
            tables["left_out"] = LeftOut({"rank_number": self._local.left_out})
        if landed and self._local.chosen and self._local.pace is not None:
            pace = self._local.pace
            tables["round"] = Round({"steps": [pace.every], "exchange_s": [pace.exchange_s], "step_s": [pace.step_s]})
        return StepStats(loss, lr, told["scalars"], tables)

    def gather(self) -> None:
        """Put the outer parameters and the means of buffers into the model, until the next step. Collective."""
        self._local.gather()

    def stand(self) -> None:
        self._local.stand()

    def plan(self, flops: float) -> dict[str, str]:
        parameters = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        return {"parameters": f"{parameters:,}", **self._local.plan()}

    def state_dict(self) -> Tree:
        return self._local.state_dict()

    def rank_state_dict(self) -> Tree:
        return self._local.rank_state_dict()

    def load_state_dict(self, shared: Tree, parts: Sequence[Tree]) -> None:
        """With another number of ranks than saved, all go on from the outer parameters; what a rank did since its last
        round is lost, and rank r takes the inner optimizer of old rank ``r % P``.
        """
        self._local.load_state_dict(shared, parts)
        self._step = shared["step"]


@dataclass(frozen=True)
class LeftOut(Rows):
    """Ranks that a round was made without."""

    def lines(self) -> Sequence[str]:
        ranks = ", ".join(str(rank) for rank in self.values["rank_number"])
        return [f"warning: a round left out ranks whose parameters are not finite: {ranks}; they begin anew from it"]


@dataclass(frozen=True)
class Round(Rows):
    """How long rounds are from now on, by what was measured."""

    def lines(self) -> Sequence[str]:
        steps, exchange_s, step_s = (self.values[name][0] for name in ("steps", "exchange_s", "step_s"))
        times = f"an exchange takes {1e3 * exchange_s:.3g} ms, a step {1e3 * step_s:.3g} ms"  # type: ignore[operator]
        return [f"local steps: rounds of {steps} steps from now on: {times}"]
