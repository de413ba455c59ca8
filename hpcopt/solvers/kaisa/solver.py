"""KAISA as a job's solver: data parallelism whose summed gradients are preconditioned before the inner optimizer."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from hpcopt.errors import JobError, fitting
from hpcopt.optim.by_pattern import build_by_pattern
from hpcopt.optim.config import Outcome
from hpcopt.optim.groups import scale_learning_rate
from hpcopt.optim.several import Several
from hpcopt.randomness import random_state, replayed
from hpcopt.shapes.batch import TensorBatch
from hpcopt.shapes.context import Context
from hpcopt.shapes.loss import OutputLoss
from hpcopt.shapes.solver import SolverConfig, Task, Tree
from hpcopt.shapes.stats import Scalar, StepStats
from hpcopt.solvers.data_parallel import DataParallel
from hpcopt.solvers.first_order import Synchronous, trained
from hpcopt.solvers.kaisa.advice import Adviser
from hpcopt.solvers.kaisa.cost import table
from hpcopt.solvers.kaisa.methods import METHODS, whole_steps
from hpcopt.solvers.kaisa.preconditioner import Kaisa
from hpcopt.solvers.kaisa.settings import KaisaSettings
from hpcopt.solvers.kaisa.targets import Distribution
from hpcopt.store.saved_parts import SavedParts


class KaisaConfig(SolverConfig, Synchronous, KaisaSettings):
    """K-FAC, or another method of layers, spread over the ranks, around any optimizer."""

    name: Literal["kaisa"] = "kaisa"
    terms_per_sample: float = Field(1.0, gt=0, description="terms that the loss averages over, for each sample")
    distribution: Distribution = Field("categorical", description="of targets, for sampled Fisher")
    step_lr: float | None = Field(
        None,
        gt=0,
        description="learning rate, at its top, of whole steps, as muon's and soap's; by default the optimizer's",
    )
    step_decay: float = Field(0.0, ge=0, description="decay of those weights, decoupled")

    @model_validator(mode="after")
    def _steps_are_not_clipped(self) -> "KaisaConfig":
        whole = [name for name in self.method_names() if METHODS[name][0].whole]
        if whole and self.clip_norm is not None:
            raise ValueError(f"clip_norm would shorten the steps of {whole[0]}, whose size is no gradient's: leave it")
        return self

    def optimizer_of(self, model: nn.Module, signs: Callable[[float], Outcome] | None = None) -> torch.optim.Optimizer:
        """That of the job; whole steps are multiplied by their learning rate alone."""
        moved = whole_steps(model, self)
        if not moved:
            return super().optimizer_of(model, signs)
        ids = {id(p) for p in moved}
        rest = [(name, p) for name, p in trained(model) if id(p) not in ids]
        steps = torch.optim.SGD(moved, lr=self.optimizer.lr, weight_decay=self.step_decay)
        scale_learning_rate(steps, (self.step_lr or self.optimizer.lr) / self.optimizer.lr)
        return Several([build_by_pattern(self.optimizer, self.groups, rest, signs), steps]) if rest else steps

    def build(self, task: Task, context: Context) -> "KaisaSolver":
        """Make the solver. Collective.

        Raises:
            JobError: no placement fits the memory budget; sampled targets are asked of a loss that hides its outputs.
        """
        return KaisaSolver(self, task, context)

    @property
    def tied_to_ranks(self) -> str:
        if self.shard_optimizer:
            return "shard_optimizer cuts the parameters by ranks"
        if "ekfac" in self.method_names():
            return 'method "ekfac" adds second moments up over ranks'
        if self.damping_every:
            return "damping_every measures the curvature rank by rank"
        if self.wire_dtype != "float32":
            return "wire_dtype rounds what each rank sends"
        return ""

    def preconditioner(self) -> dict[str, Any]:
        """The preconditioner's own settings."""
        return {name: getattr(self, name) for name in KaisaSettings.model_fields}


class KaisaSolver(DataParallel):
    """The solver.

    Scalars of a step: ``cosine.LAYER``, between the layer's preconditioned and raw gradient: 1 is a
    preconditioner that does nothing; ``kaisa.damping``, ``kaisa.clip``: the damping, and the factor of KL clipping;
    ``kaisa.ratio``: rho of the last Levenberg-Marquardt adaptation;
    ``kaisa.rejected``, ``kaisa.redamped``, ``kaisa.float64``: sums left out, and factors hard to invert, of all ranks
    so far.
    """

    def __init__(self, config: KaisaConfig, task: Task, context: Context) -> None:
        """Start from rank 0's parameters. Collective."""
        sampled, loss, world = config.fisher == "sampled", task.loss, context.world
        if sampled and not isinstance(loss, OutputLoss):
            raise JobError(
                '[solver] fisher = "sampled" needs a workload whose loss is a function of the model\'s outputs alone; '
                'use fisher = "empirical"'
            ).everywhere()
        super().__init__(config, task, context)
        self._derivatives.loss = self._sampling if sampled else loss
        self._kaisa_config, self._whole_loss, self._terms = config, loss, 1.0
        self.kaisa = Kaisa(
            task.model,
            world,
            lr=self._learning_rate,
            averaged=False,
            total_steps=context.total_steps,
            seed=context.seed("kaisa"),
            virtual=context.virtual,
            **config.preconditioner(),
        )
        self._adviser = Adviser(self.kaisa, task.model, frozenset(config.model_fields_set), context.total_steps)
        if self._derivatives.virtual is not None:
            self._derivatives.virtual.after_each = self._note_virtual_rank

    def _note_virtual_rank(self, virtual_rank: int) -> None:
        self.kaisa.note_virtual_rank(virtual_rank, self._terms)

    def step(self, batch: Any) -> StepStats:
        self._terms = batch.global_size * self._kaisa_config.terms_per_sample
        random = random_state() if self.kaisa.damping_due else None
        stats = super().step(batch)
        if random is not None:
            assert stats.loss is not None
            self.kaisa.adapt_damping(float(stats.loss), self._again(batch, random))
        tables = {**stats.tables, **self._adviser.after_step()}
        return replace(stats, scalars={**stats.scalars, **self._metrics()}, tables=tables)

    def _sampling(self, model: nn.Module, batch: TensorBatch) -> Tensor:
        loss = self._whole_loss
        assert isinstance(loss, OutputLoss)
        outputs = model(loss.inputs(batch))
        if self.kaisa.factors_due:
            self.kaisa.sample(outputs, self._kaisa_config.distribution, terms=self._terms)
        return loss.criterion(outputs, batch)

    def _again(self, batch: TensorBatch, random: Tree) -> float:
        """The loss of a step's batch after it, in training mode, with the dropout of the step and no trace."""
        buffers = [b.clone() for b in self.model.buffers()]
        with torch.no_grad(), self.kaisa.paused(), replayed(random):
            micros = batch.split(self._config.accumulate)
            loss = sum(self._whole_loss(self.model, micro).item() * micro.weight for micro in micros)
            for kept, b in zip(buffers, self.model.buffers(), strict=True):
                b.copy_(kept)
        return loss

    def _learning_rate(self) -> float:
        return self._config.learning_rate(self._step, self._steps)

    def _update(self) -> float:
        with self._clock("precondition"):
            self.kaisa.step(self._terms)
        return super()._update()

    def _metrics(self) -> dict[str, Scalar | float]:
        kaisa = self.kaisa
        return {
            **{f"cosine.{name}": value for name, value in kaisa.cosines.items()},
            "kaisa.damping": kaisa.damping,
            "kaisa.ratio": kaisa.ratio,
            "kaisa.clip": kaisa.clipped,
            "kaisa.rejected": Scalar(kaisa.rejected, "sum"),
            "kaisa.redamped": Scalar(kaisa.failures.more_damping, "sum"),
            "kaisa.float64": Scalar(kaisa.failures.float64, "sum"),
        }

    def plan(self, flops: float) -> dict[str, str]:
        s = self._kaisa_config
        other_s = flops / s.flops + self._exchange.planned_bytes() / s.bandwidth
        rates = f"predicted at {s.flops:.3g} operations and {s.bandwidth:.3g} bytes a second"
        times = f"{rates}\n{table(self.kaisa.forecasts(), other_s)}"
        return {**super().plan(flops), **self.kaisa.describe(), "KAISA times": times}

    def state_dict(self) -> Tree:
        return {**super().state_dict(), "kaisa": self.kaisa.state_dict()}

    def rank_state_dict(self) -> Tree:
        return {**super().rank_state_dict(), "kaisa": self.kaisa.rank_state_dict()}

    def load_state_dict(self, shared: Tree, parts: Sequence[Tree]) -> None:
        super().load_state_dict(shared, parts)
        with fitting("the job's preconditioner"):
            self.kaisa.load_state_dict(shared["kaisa"], SavedParts.of(parts).under("kaisa"))
