"""Stochastic nested variance reduction (Zhou, Xu, Gu 2018, arXiv:1806.07811), with SVRG and SCSG as special cases.

The loss is a mean over n samples. Step t of an outer epoch of ``T_1 ... T_K`` steps looks anew at level r, the first
whose inner steps ``T_{r+1} ... T_K`` divide t; level 0 begins the epoch. At the iterate x, with B_r samples I::

    x^(l) <- x                                                        for all levels l >= r
    g^(r) <- mean over I of grad f_i(x) - grad f_i(x^(r-1))           for r = 0 without the second
    g^(l) <- 0                                                        for l > r
    v = g^(0) + ... + g^(K)                                           what the optimizer gets for a gradient

One level with all n samples for a reference is SVRG, with fewer SCSG. All samples are drawn without replacement by the
run's seed and the step, so they are the same at any number of ranks. What travels is g^(r), once a step.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor

from hpcopt.errors import JobError, fitting
from hpcopt.families import OPTIMIZERS
from hpcopt.optim import OptimizerConfig, SgdConfig
from hpcopt.optim.groups import set_learning_rate
from hpcopt.optim.state import optimizer_state, restore_optimizer
from hpcopt.seeds import EVERY_RANK, derive
from hpcopt.shapes.context import Context
from hpcopt.shapes.samples import Samples
from hpcopt.shapes.solver import Solver, SolverConfig, Task, Tree, optimizer_tensors
from hpcopt.shapes.stats import StepStats
from hpcopt.solvers.derivatives import GlobalLoss
from hpcopt.solvers.first_order import Scheduled


class SnvrgConfig(SolverConfig, Scheduled):
    """Nested variance reduction: steps by differences to gradients at reference points. Data must be read by index."""

    name: Literal["snvrg"] = "snvrg"
    lengths: tuple[PositiveInt, ...] = Field(
        (4, 4), min_length=1, description="steps of each level, the outermost first: T_1 ... T_K"
    )
    reference: PositiveInt | Literal["all", "balanced"] = Field(
        "balanced", description="samples of an epoch's first gradient; balanced: as many as its steps have"
    )
    batches: tuple[PositiveInt, ...] | None = Field(
        None, description="samples of levels 1 to K - 1, balanced if off; the innermost has [workload] batch"
    )
    restart_every: PositiveInt | None = Field(
        None, description="epochs of the method after which it goes back to one of their iterates, drawn at random"
    )
    optimizer: Annotated[OptimizerConfig, OPTIMIZERS] = Field(
        SgdConfig(momentum=0.0), description="the optimizer that every rank runs, on the estimate of the gradient"
    )

    @model_validator(mode="after")
    def _a_batch_for_each_level(self) -> "SnvrgConfig":
        between = len(self.lengths) - 1
        if self.batches is not None and len(self.batches) != between:
            raise ValueError(f"{len(self.lengths)} lengths have {between} batches between reference and innermost")
        return self

    def sizes(self, samples: Samples) -> list[int]:
        """Samples of each level, 0 to K.

        Raises:
            JobError: on all ranks: there are not as many.
        """
        found = [samples.batch * math.prod(self.lengths[level:]) for level in range(len(self.lengths) + 1)]
        if self.reference != "balanced":
            found[0] = samples.count if self.reference == "all" else self.reference
        if self.batches is not None:
            found[1:-1] = self.batches
        for level, size in enumerate(found):
            if size > samples.count:
                raise JobError(
                    f'[solver] name = "snvrg": level {level} takes {size:,} samples, and there are {samples.count:,}: '
                    'shorten lengths, make [workload] batch smaller, or give batches and reference = "all"'
                ).everywhere()
        return found

    def build(self, task: Task, context: Context) -> "Snvrg":
        """Make the solver. Collective.

        Raises:
            JobError: the data cannot be read by index, or are too few.
        """
        return Snvrg(self, task, context)


class Snvrg(Solver):
    """The solver. It keeps K points and K gradients, each of the model's size.

    Scalars of a step: ``level``, the one that it looked at, and ``gradients``, of single samples, so far.
    """

    draws = True

    def __init__(self, config: SnvrgConfig, task: Task, context: Context) -> None:
        """Start from rank 0's parameters. Collective."""
        if task.samples is None:
            raise JobError(
                '[solver] name = "snvrg" is for a finite sum of samples that can be read by index, and this workload '
                "reads them front to back: give a data set with __len__ and __getitem__, or use data_parallel"
            ).everywhere()
        self.model, self._config, self._clock = task.model, config, context.clock
        self.data_rank, self.data_size = context.world.rank, context.world.size
        self._samples, self._sizes = task.samples, config.sizes(task.samples)
        self._derivatives = GlobalLoss(task, context)
        self._parameters = list[Tensor](self._derivatives.parameters)
        self._optimizer = config.optimizer.build(self._derivatives.parameters)
        levels = range(len(config.lengths))
        self._points = [self._zeros() for _ in levels]
        self._sums = [self._zeros() for _ in levels]  # of g^(0) to g^(l)
        self._kept = self._zeros() if config.restart_every else []
        self._seed, self._steps = context.seed("snvrg"), context.total_steps
        self._step = self._gradients = 0

    def step(self, batch: Any) -> StepStats:
        """``batch`` is not looked at."""
        epoch = math.prod(self._config.lengths)
        level = level_of(self._step % epoch, self._config.lengths)
        samples = drawn(self._samples.count, self._sizes[level], derive(self._seed, self._step, EVERY_RANK, "samples"))
        loss = self._derivatives.gradient(samples, less_at=self._points[level - 1] if level else None)
        with self._clock("update"):
            self._take(level)
            lr = self._update(epoch)
        self._gradients += self._sizes[level] * (2 if level else 1)
        told = {"level": float(level), "gradients": float(self._gradients)}
        return StepStats(loss, lr, {**self._derivatives.exchange.metrics(), **told})

    @torch.no_grad()
    def _take(self, level: int) -> None:
        """From g^(level) to the estimate v, in every ``grad``; the levels from here on are at this point."""
        v = [p.grad for p in self._parameters if p.grad is not None]
        if level:
            torch._foreach_add_(v, self._sums[level - 1])
        for point, total in zip(self._points[level:], self._sums[level:], strict=True):
            torch._foreach_copy_(point, self._parameters)
            torch._foreach_copy_(total, v)

    @torch.no_grad()
    def _update(self, epoch: int) -> float:
        lr = self._config.learning_rate(self._step, self._steps)
        set_learning_rate(self._optimizer, lr)
        chosen, last = self._restart(epoch)
        if chosen:
            torch._foreach_copy_(self._kept, self._parameters)
        self._optimizer.step()
        if last:
            torch._foreach_copy_(self._parameters, self._kept)
        self._step += 1
        return lr

    def _restart(self, epoch: int) -> tuple[bool, bool]:
        """Whether this step's iterate is the one to go back to, and whether that is done after it."""
        if self._config.restart_every is None:
            return False, False
        steps = epoch * self._config.restart_every
        turn, place = divmod(self._step, steps)
        chosen = np.random.default_rng(derive(self._seed, turn, EVERY_RANK, "restart")).integers(steps)
        return bool(place == chosen), place == steps - 1

    def _zeros(self) -> list[Tensor]:
        return [torch.zeros_like(p, requires_grad=False) for p in self._parameters]

    def must_be_finite(self) -> Iterator[tuple[str, Tensor]]:
        yield from super().must_be_finite()
        yield from optimizer_tensors(self._optimizer)
        for level, total in enumerate(self._sums):
            yield from ((f"the reference gradient of level {level}", g) for g in total)

    def gather(self) -> None:
        """Every rank has it all."""

    def plan(self, flops: float) -> dict[str, str]:
        epoch = math.prod(self._config.lengths)
        levels = ", ".join(f"{size:,}" for size in self._sizes)
        cost = gradients_of_an_epoch(self._config.lengths, self._sizes)
        return {
            "parameters": f"{sum(p.numel() for p in self._parameters):,}",
            **self._derivatives.exchange.plan(),
            "levels": f"of {levels} samples, in turns of {epoch} steps: {cost:,} gradients of single samples a turn",
        }

    def state_dict(self) -> Tree:
        return {
            "step": self._step,
            "gradients": self._gradients,
            "model": self.model.state_dict(),
            "optimizer": optimizer_state(self._optimizer),
            "points": self._points,
            "sums": self._sums,
            "kept": self._kept,
        }

    def rank_state_dict(self) -> Tree:
        return self._derivatives.rank_state_dict()

    @torch.no_grad()
    def load_state_dict(self, shared: Tree, parts: Sequence[Tree]) -> None:
        with fitting("the job's model, optimizer or lengths"):
            self.model.load_state_dict(shared["model"])
            restore_optimizer(self._optimizer, shared["optimizer"])
            saved = [*shared["points"], *shared["sums"], shared["kept"]]
            for own, theirs in zip([*self._points, *self._sums, self._kept], saved, strict=True):
                for tensor, values in zip(own, theirs, strict=True):
                    tensor.copy_(values)
            self._derivatives.load_state_dict(parts)
            self._step, self._gradients = shared["step"], shared["gradients"]


def level_of(t: int, lengths: Sequence[int]) -> int:
    """The level that step t of an outer epoch looks at: the first whose inner steps divide t.

    >>> [level_of(t, (2, 3)) for t in range(6)]
    [0, 2, 2, 1, 2, 2]
    """
    return next(level for level in range(len(lengths) + 1) if t % math.prod(lengths[level:]) == 0)


def drawn(count: int, size: int, seed: int) -> np.ndarray:
    """Numbers of ``size`` of ``count`` samples, drawn without replacement, ascending, shape (size,), int64."""
    return np.sort(np.random.default_rng(seed).choice(count, size, replace=False))


def gradients_of_an_epoch(lengths: Sequence[int], sizes: Sequence[int]) -> int:
    """Gradients of single samples in an outer epoch: one for each of the reference's, two for each of a level's.

    >>> gradients_of_an_epoch((2, 3), (60, 12, 4))  # one look at level 1, four at level 2
    116
    """
    looks = [math.prod(lengths[: level - 1]) * (lengths[level - 1] - 1) for level in range(1, len(sizes))]
    return sizes[0] + 2 * sum(n * size for n, size in zip(looks, sizes[1:], strict=True))
