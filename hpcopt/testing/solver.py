"""What every solver promises, as functions that raise AssertionError; ``check_solver`` runs them all.

    from hpcopt.testing.solver import check_solver

    def test_mine():
        check_solver(MySolverConfig())

Ranks are threads of this process.
"""

import copy
import gc
import math
import weakref
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.rehearsal import RehearsalTransport
from hpcopt.comm.transport import Transport
from hpcopt.comm.world import World
from hpcopt.errors import CheckpointError, PeerError
from hpcopt.exchange import ExchangeConfig, RingConfig
from hpcopt.shapes.context import Context
from hpcopt.shapes.solver import SolverConfig, Tree
from hpcopt.testing.problem import Problem, flat
from hpcopt.testing.scales import Scales

STEPS, AFTER = 5, 4
PROBLEM, RING = Problem(), RingConfig()


@dataclass(frozen=True)
class Run:
    """One rank's end of a short training.

    Attributes:
        losses: of its steps, summed over the ranks; NaN where no rank had one.
        parameters: of the gathered model, flat.
        shared, own: the solver's state after the last step.
        sent_bytes: of this rank in each step, as ``world.traffic`` has them after it.
        carried_bytes: that its transports carried in each step.
    """

    losses: list[float]
    parameters: Tensor
    shared: Tree
    own: Tree
    sent_bytes: list[int]
    carried_bytes: list[int]


@dataclass(frozen=True)
class Trial:
    """A solver's configuration with what it is tried on."""

    config: SolverConfig
    problem: Problem = PROBLEM
    exchange: ExchangeConfig = RING
    _firsts: dict[int, list[Run]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def first(self, size: int) -> list[Run]:
        """The first run on so many ranks, which all checks look at."""
        if size not in self._firsts:
            self._firsts[size] = self.run(size)
        return self._firsts[size]

    def run(
        self, size: int, steps: int = STEPS, *, first: int = 0, saved: Sequence[Run] = (), total: int = STEPS + AFTER
    ) -> list[Run]:
        """Train for some steps on so many ranks, from the start or from the states that ranks saved."""
        tasks = [self.problem.task() for _ in range(size)]  # here, where no other thread draws

        def program(transport: Transport) -> Run:
            scales = Scales(transport)
            world = World(scales)
            solver = self.config.build(tasks[world.rank], self.context(world, total))
            if saved:
                solver.load_state_dict(copy.deepcopy(saved[0].shared), [copy.deepcopy(run.own) for run in saved])
            losses, sent_bytes, carried_bytes = list[float | None](), list[int](), list[int]()
            world.traffic.lap()
            scales.lap()
            for batch in self.problem.batches(solver.data_rank, solver.data_size, steps, first):
                loss = solver.step(batch).loss
                losses.append(None if loss is None else float(loss))
                sent_bytes.append(world.traffic.lap().sent_bytes)
                carried_bytes.append(scales.lap())
            solver.gather()
            shared, own = copy.deepcopy((solver.state_dict(), solver.rank_state_dict()))
            parameters = flat(solver.model)
            return Run(summed(world, losses), parameters, shared, own, sent_bytes, carried_bytes)

        return run_ranks(size, program)

    def context(self, world: World, total: int) -> Context:
        """Of a run of so many steps."""
        return Context(world=world, exchange=self.exchange, steps=total)


def check_solver(
    config: SolverConfig,
    *,
    problem: Problem = PROBLEM,
    exchange: ExchangeConfig = RING,
    ranks: Iterable[int] = (1, 2, 3),
    same_curve: bool = True,
) -> None:
    """Run every check below.

    Args:
        ranks: numbers of them to try.
        same_curve: whether the curve must be the same at any number of ranks, as it is for what sums exactly.

    Raises:
        AssertionError: naming the promise.
    """
    trial, sizes = Trial(config, problem, exchange), tuple(ranks)
    if same_curve:
        check_same_curve(trial, sizes)
    for size in sizes:
        check_equal_on_all_ranks(trial, size)
        check_bytes(trial, size)
        check_resume(trial, size)
        check_damage(trial, size)
    for before in sizes:
        for after in sizes:
            if before != after:
                check_other_ranks(trial, before, after)
    check_plan(trial, sizes[-1])
    check_let_go(trial, sizes[-1])
    check_lost_rank(trial, sizes[-1])


def check_same_curve(trial: Trial, sizes: Sequence[int]) -> None:
    """Losses and parameters are those of one rank, but for rounding; a share may be empty."""
    reference = trial.first(sizes[0])[0]
    assert all(map(math.isfinite, reference.losses)), f"{trial.config.name}: losses {reference.losses}"
    for size in sizes[1:]:
        run = trial.first(size)[0]
        assert torch.allclose(run.parameters, reference.parameters, rtol=1e-3, atol=1e-4), (
            f"{trial.config.name}: {size} ranks end with other parameters than {sizes[0]}"
        )
        assert torch.allclose(torch.tensor(run.losses), torch.tensor(reference.losses), rtol=1e-3), (
            f"{trial.config.name}: losses on {size} ranks {run.losses}, on {sizes[0]} {reference.losses}"
        )


def check_equal_on_all_ranks(trial: Trial, size: int) -> None:
    """After ``gather`` parameters are bit-equal on all ranks, as is ``state_dict``, which those go on from who lose
    rank 0; and the same run gives the same bits.
    """
    runs, again = trial.first(size), trial.run(size)
    for rank, run in enumerate(runs):
        assert torch.equal(run.parameters, runs[0].parameters), f"{trial.config.name}: rank {rank} of {size} differs"
        assert same(run.shared, runs[0].shared), (
            f"{trial.config.name}: state_dict of rank {rank} of {size} is not rank 0's: what not all ranks know "
            "belongs to rank_state_dict"
        )
    assert torch.equal(runs[0].parameters, again[0].parameters), f"{trial.config.name}: the same run gives other bits"


def check_bytes(trial: Trial, size: int) -> None:
    """After each step ``world.traffic`` has what the rank's transports carried in it, those of threads and groups too;
    one rank alone sends nothing.
    """
    for rank, run in enumerate(trial.first(size)):
        who = f"{trial.config.name}: rank {rank} of {size}"
        assert run.sent_bytes == run.carried_bytes, (
            f"{who} sent {run.carried_bytes} bytes in its steps, and recorded {run.sent_bytes}"
        )
        assert size > 1 or not any(run.sent_bytes), f"{who} has nobody to send {run.sent_bytes} bytes to"


def check_resume(trial: Trial, size: int) -> None:
    """Saved after some steps and taken up by a new solver, training ends with the bits of one that went on."""
    straight = trial.run(size, STEPS + AFTER)
    resumed = trial.run(size, AFTER, first=STEPS, saved=trial.first(size))
    for rank in range(size):
        assert torch.equal(straight[rank].parameters, resumed[rank].parameters), (
            f"{trial.config.name}: resumed on {size} ranks, rank {rank} ends with other bits: is all of its state in "
            "state_dict and rank_state_dict?"
        )


def check_other_ranks(trial: Trial, before: int, after: int) -> None:
    """What one number of ranks saved another takes up: from the same parameters, and still equal on all ranks."""
    saved = trial.first(before)
    taken = trial.run(after, 0, first=STEPS, saved=saved)
    gap = float((taken[0].parameters - saved[0].parameters).abs().max())
    assert gap <= 1e-6, f"{trial.config.name}: {after} ranks do not begin where {before} ended: off by {gap}"
    runs = trial.run(after, AFTER, first=STEPS, saved=saved)
    assert all(torch.equal(run.parameters, runs[0].parameters) for run in runs), (
        f"{trial.config.name}: from {before} to {after} ranks, parameters are no longer equal on all of them"
    )
    assert runs[0].parameters.isfinite().all(), f"{trial.config.name}: from {before} to {after} ranks: not finite"


def check_damage(trial: Trial, size: int) -> None:
    """A state that lacks something is refused with CheckpointError, not with a traceback."""
    saved = trial.first(size)
    for key in saved[0].shared:
        shared = {name: value for name, value in saved[0].shared.items() if name != key}
        damaged = [replace(run, shared=shared) for run in saved]
        try:
            trial.run(size, 0, saved=damaged)
        except CheckpointError:
            continue
        raise AssertionError(f"{trial.config.name}: a state without {key!r} is not refused")


def check_plan(trial: Trial, size: int) -> None:
    """The plan of a dry run, on ranks that are not there, is lines of text."""
    world = World(RehearsalTransport(size))
    plan: dict[str, Any] = trial.config.build(trial.problem.task(), trial.context(world, STEPS)).plan(1e6)
    assert plan and all(isinstance(part, str) for line in plan.items() for part in line), f"a plan of {plan}"


def check_let_go(trial: Trial, size: int) -> None:
    """Whoever trains one network after another has memory for one: a solver goes with its network when it is let go."""
    tasks = [trial.problem.task() for _ in range(size)]

    def program(transport: Transport) -> list[weakref.ref[Any]]:
        world = World(transport)
        solver = trial.config.build(tasks[world.rank], trial.context(world, STEPS))
        for batch in trial.problem.batches(solver.data_rank, solver.data_size, 1, 0):
            solver.step(batch)
        return [weakref.ref(solver), weakref.ref(solver.model)]

    kept = run_ranks(size, program)
    tasks.clear()
    gc.collect()
    assert not any(of_solver() or of_model() for of_solver, of_model in kept), (
        f"{trial.config.name}: a solver that is used no more stays in memory: do hooks of its parameters hold it?"
    )


def check_lost_rank(trial: Trial, size: int) -> None:
    """A rank that fails in the midst leaves none waiting: all others end with PeerError, wherever they wait for it."""
    tasks, noticed = [trial.problem.task() for _ in range(size)], list[int]()

    def program(transport: Transport) -> None:
        world = World(transport)
        try:  # a rank that does not wait for all others may fail while they still begin
            solver = trial.config.build(tasks[world.rank], trial.context(world, STEPS + AFTER))
            batches = trial.problem.batches(solver.data_rank, solver.data_size, STEPS + AFTER, 0)
            for step, batch in enumerate(batches):
                if step == 2 and world.rank == size - 1:
                    raise _LostError
                solver.step(batch)
            solver.gather()
        except PeerError:
            noticed.append(world.rank)

    with suppress(_LostError):
        run_ranks(size, program)
    missed = sorted(set(range(size - 1)) - set(noticed))
    assert not missed, f"{trial.config.name}: ranks {missed} come to their end without rank {size - 1}, which failed"


class _LostError(Exception):
    """What no solver knows."""


def same(one: Tree, other: Tree) -> bool:
    """Whether two trees have the same values."""
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, Tensor):
        return one.shape == other.shape and torch.allclose(one.double(), other.double(), 0, 0, equal_nan=True)
    if isinstance(one, float | np.ndarray):
        return np.array_equal(one, other, equal_nan=True)
    return bool(one == other)


def summed(world: World, losses: Sequence[float | None]) -> list[float]:
    """The ranks' losses of each step, NaN where no rank has one. Collective."""
    had = world.all_reduce(torch.tensor([loss is not None for loss in losses], dtype=torch.float64))
    total = world.all_reduce(torch.tensor([loss or 0.0 for loss in losses], dtype=torch.float64))
    return torch.where(had > 0, total, math.nan).tolist()
