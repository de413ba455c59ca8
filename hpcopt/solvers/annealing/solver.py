"""Simulated annealing and parallel tempering of a discrete model, by chains that are dealt over the ranks.

A state's energy is the mean loss of all training samples, in evaluation mode; every rank reads them all. Simulated
annealing (Kirkpatrick, Gelatt, Vecchi 1983) cools independent chains from ``hottest`` to ``coldest`` over the run.
Parallel tempering (Geyer 1991; Hukushima & Nemoto 1996, arXiv:cond-mat/9512035) keeps one chain at each temperature
between the two, and after each step lets neighbours swap theirs: a chain that is stuck in the cold gets away by heat.

Chain c draws from the run's seed, c and the step, so the run is the same bits at any number of ranks, and resumes at
any. What travels in a step is three numbers a chain.
"""

import copy
import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator

from hpcopt.errors import DivergedError, JobError, fitting
from hpcopt.seeds import EVERY_RANK, derive
from hpcopt.shapes.context import Context
from hpcopt.shapes.discrete import Discrete
from hpcopt.shapes.solver import Solver, SolverConfig, Task, Tree
from hpcopt.shapes.stats import Rows, StepStats, Table
from hpcopt.solvers.annealing.chain import Chain
from hpcopt.solvers.annealing.ladder import Ladder, geometric


class AnnealingConfig(SolverConfig):
    """Random moves of a model with finitely many states, taken by a temperature. No gradient is asked for."""

    name: Literal["annealing"] = "annealing"
    method: Literal["parallel_tempering", "simulated_annealing"] = Field(
        "parallel_tempering",
        description="parallel_tempering: chains at fixed temperatures, whose neighbours swap; simulated_annealing: "
        "independent chains that cool over the run",
    )
    chains: int = Field(4, ge=1, description="in all; each rank walks as many as every other, or one less")
    moves: int = Field(100, ge=1, description="proposed moves of each chain in a step, before neighbours swap")
    hottest: float = Field(1.0, gt=0, description="highest temperature, in units of the loss")
    coldest: float = Field(0.1, gt=0, description="lowest temperature; those between differ by one factor")

    @model_validator(mode="after")
    def _cold_is_colder(self) -> "AnnealingConfig":
        if self.coldest > self.hottest:
            raise ValueError(f"coldest = {self.coldest:g} is hotter than hottest = {self.hottest:g}")
        return self

    @property
    def needs(self) -> frozenset[str]:
        return frozenset()

    @property
    def asks(self) -> frozenset[str]:
        return frozenset()

    def build(self, task: Task, context: Context) -> "Annealing":
        """Make the solver. Collective.

        Raises:
            JobError: the model cannot propose and undo moves, or the data cannot be read by index.
        """
        return Annealing(self, task, context)


class Annealing(Solver):
    """The solver. ``model`` is the best state that any chain has been in, as of the last ``gather``.

    Scalars of a step: ``best``, the lowest energy so far; ``moves``, of all chains so far; ``accepted``, the share of
    the step's moves that were taken. The loss is the lowest energy that a chain is at. The table ``ladder`` has each
    rung's temperature and the share of tried swaps with the next that came off.
    """

    draws = True

    def __init__(self, config: AnnealingConfig, task: Task, context: Context) -> None:
        """Start all chains from rank 0's parameters. Collective."""
        if not isinstance(task.model, Discrete):
            raise JobError(
                f'[solver] name = "annealing" walks by moves, and {type(task.model).__name__} has no propose(), '
                'undo() and energy() (hpcopt.shapes.Discrete): a deductron has them with gates = "hard"'
            ).everywhere()
        if task.samples is None:
            raise JobError(
                '[solver] name = "annealing" needs the loss of all training samples, and this workload reads them '
                "front to back: give a data set with __len__ and __getitem__"
            ).everywhere()
        self.model, self._task, self._samples = task.model, task, task.samples
        self._config, self._clock, self._world = config, context.clock, context.world
        self._seed, self._steps = context.seed("annealing"), context.total_steps
        self.data_rank, self.data_size = 0, 1  # a rank reads everything
        for tensor in self.model.state_dict().values():
            self._world.broadcast(tensor)
        self._chains = {
            number: Chain(copy.deepcopy(self.model).eval(), self._energy_of)
            for number in dealt(config.chains, self._world.size)[self._world.rank]
        }
        self._ladder = Ladder(geometric(config.coldest, config.hottest, config.chains))
        self._step, self._best, self._best_chain = 0, math.inf, 0

    def step(self, batch: Any) -> StepStats:
        """Let each chain propose its moves, then neighbours swap; ``batch`` is not looked at. Collective: a sum of
        three numbers a chain.

        Raises:
            DivergedError: on all ranks: a chain came upon a state whose loss is NaN; the message names the chain.
        """
        count = self._config.chains
        energies, bests, takens = ([0.0] * count for _ in range(3))  # of other ranks' chains, too, once summed
        for number, chain in self._chains.items():
            draw = np.random.default_rng(derive(self._seed, self._step, number, "moves"))
            with self._clock("forward"), torch.no_grad():
                taken = chain.walk(self._config.moves, self._temperature(number), draw)
            energies[number], bests[number], takens[number] = chain.energy or 0.0, chain.best, taken
        with self._clock("exchange"):
            told = self._world.sum([*energies, *bests, *takens])
        energies, bests, takens = told[:count], told[count : 2 * count], told[2 * count :]
        self._require_numbers(energies)
        if min(bests) < self._best:
            self._best_chain = bests.index(min(bests))
            self._best = bests[self._best_chain]
        tables = dict[str, Table]()
        if self._config.method == "parallel_tempering":
            draw = np.random.default_rng(derive(self._seed, self._step, EVERY_RANK, "swaps"))
            self._ladder.swap(energies, self._step, draw)
            tables = {"ladder": self._ladder_now()}
        self._step += 1
        moves = count * self._config.moves
        scalars = {"best": self._best, "moves": float(self._step * moves), "accepted": sum(takens) / moves}
        return StepStats(min(energies) if self._world.rank == 0 else None, None, scalars, tables)

    def _temperature(self, chain: int) -> float:
        """Of a chain in this step."""
        if self._config.method == "parallel_tempering":
            return self._ladder.temperatures[self._ladder.rungs[chain]]
        part = min(1.0, self._step / max(1, self._steps - 1))
        return self._config.hottest * math.pow(self._config.coldest / self._config.hottest, part)

    @cached_property
    def _all_samples(self) -> Any:
        return self._samples.at(np.arange(self._samples.count), self._samples.count)

    def _energy_of(self, model: Discrete) -> float:
        return float(model.energy(self._task.loss, self._all_samples))

    def _require_numbers(self, energies: Sequence[float]) -> None:
        for chain, energy in enumerate(energies):
            if math.isnan(energy):
                raise DivergedError(
                    f"the loss of a state of chain {chain} is NaN, in step {self._step + 1}: let the loss of what the "
                    "model must not do be large, or inf, which no chain moves to"
                )

    def _ladder_now(self) -> Rows:
        ladder = self._ladder
        pairs = zip(ladder.swaps, ladder.tries, strict=True)
        swapped = [s / t if t else math.nan for s, t in pairs]
        return Rows({"temperature": ladder.temperatures, "swapped": [*swapped, math.nan]}, lasting=True)

    def gather(self) -> None:
        """Put the best state into the model on all ranks. Collective: a broadcast of the model."""
        owner = next(r for r, own in enumerate(dealt(self._config.chains, self._world.size)) if self._best_chain in own)
        if self._world.rank == owner:
            self.model.load_state_dict(self._chains[self._best_chain].best_state)
        for tensor in self.model.state_dict().values():
            self._world.broadcast(tensor, owner)

    def plan(self, flops: float) -> dict[str, str]:
        config, each = self._config, -(-self._config.chains // self._world.size)
        temperatures = ", ".join(f"{t:.3g}" for t in self._ladder.temperatures)
        cooling = f"from {config.hottest:g} to {config.coldest:g}"
        return {
            "parameters": f"{sum(p.numel() for p in self.model.parameters()):,}",
            "chains": f"{config.chains}, {each} on the busiest rank, {config.moves:,} moves of each a step, "
            f"each of which goes through all {self._samples.count:,} training samples",
            "temperatures": temperatures if config.method == "parallel_tempering" else cooling,
        }

    def state_dict(self) -> Tree:
        return {
            "step": self._step,
            "model": self.model.state_dict(),
            "best": self._best,
            "best_chain": self._best_chain,
            "ladder": self._ladder.state_dict(),
        }

    def rank_state_dict(self) -> Tree:
        return {"chains": {str(number): chain.state_dict() for number, chain in self._chains.items()}}

    def load_state_dict(self, shared: Tree, parts: Sequence[Tree]) -> None:
        """With any number of ranks: each takes up the chains that are now its own."""
        with fitting("the job's model or chains"):
            self._ladder.load_state_dict(shared["ladder"])
            self.model.load_state_dict(shared["model"])
            self._step, self._best, self._best_chain = shared["step"], shared["best"], shared["best_chain"]
            for rank, numbers in enumerate(dealt(self._config.chains, len(parts))):
                for number in numbers:
                    if number in self._chains:
                        self._chains[number].load_state_dict(parts[rank]["chains"][str(number)])


def dealt(chains: int, ranks: int) -> list[list[int]]:
    """The chains of each rank.

    >>> dealt(5, 3)
    [[0, 1], [2, 3], [4]]
    """
    return [part.tolist() for part in np.array_split(np.arange(chains), ranks)]
