"""The loop of a job: its solver steps through its workload, and is evaluated; what else there is, is housekeeping."""

import itertools
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hpcopt.comm import fixed_tree
from hpcopt.comm.virtual import VirtualRanks
from hpcopt.comm.world import World
from hpcopt.elastic.copies import Copies
from hpcopt.errors import DataError
from hpcopt.models.rewrite import stepped
from hpcopt.randomness import drawing_by
from hpcopt.shapes.batch import require_batch
from hpcopt.shapes.context import Context
from hpcopt.shapes.solver import Solver
from hpcopt.shapes.workload import Workload
from hpcopt.store.checkpoint import Checkpoints
from hpcopt.trainer.housekeeping import Housekeeping, Outcome
from hpcopt.trainer.progress import Progress
from hpcopt.trainer.recorder import Recorder
from hpcopt.trainer.resume import Position
from hpcopt.trainer.run import RunConfig
from hpcopt.trainer.signals import StopSignals
from hpcopt.trainer.virtual import DIGEST, DIGEST_EVERY, digest, virtual_batches

__all__ = ["Outcome", "Trainer", "evaluate"]


class Trainer:
    """Runs a solver on a workload until its steps, its target, its time or a signal ends it."""

    def __init__(
        self,
        *,
        run: RunConfig,
        context: Context,
        workload: Workload,
        solver: Solver,
        checkpoints: Checkpoints,
        recorder: Recorder,
        progress: Progress,
        position: Position,
        signals: StopSignals,
        copies: Copies | None = None,
    ) -> None:
        """Get ready; ``copies`` are kept in memory, for a run that goes on when ranks are lost."""
        self._world, self._clock, self._virtual = context.world, context.clock, context.virtual
        self._workload, self._solver, self._position, self._debug = workload, solver, position, run.debug
        self._house = Housekeeping(
            run=run,
            context=context,
            state=solver,
            checkpoints=checkpoints,
            recorder=recorder,
            progress=progress,
            position=position,
            signals=signals,
            lockstep=solver.lockstep,
            late=any(kind != "cpu" for kind in context.world.gather_text(context.device.type)),
            save_at_evaluations=solver.pipelined,
            data=workload.state_dict,
            copies=copies,
            roll_call=solver.roll_call,
            stand=solver.stand,
        )
        self._stood = copies is not None and copies.stood
        self._house.batch, self._house.steps_per_epoch = workload.batch, workload.steps_per_epoch
        self._house.better = workload.scores
        self._evaluate_every = run.evaluate_every or workload.steps_per_epoch or self._house.total

    def train(self) -> Outcome:
        """Run to the end, whichever it is. Collective.

        Raises:
            DivergedError: on all ranks, when the loss or the parameters are no longer finite.
        """
        with self._house.noting_divergence():
            outcome = self._steps()
            self._house.save_last()
        self._house.finish(outcome)
        return outcome

    def leave(self) -> Outcome:
        """Take no step, but save, since too few ranks are left. Collective."""
        with self._house.noting_divergence():
            self._house.save_last()
        self._house.finish(Outcome.FEW)
        return Outcome.FEW

    def _steps(self) -> Outcome:
        house, solver, position = self._house, self._solver, self._position
        batches: Iterator[Any]
        if self._virtual is not None:
            batches = virtual_batches(self._workload, self._virtual, position.step)
        else:
            batches = self._workload.train_batches(solver.data_rank, solver.data_size, position.step)
        told_the_step = stepped(self._workload.model)
        if self._stood and (house.last or position.step % self._evaluate_every == 0):
            self._evaluate()  # which the group before could not
        if (outcome := house.standing()) is None:
            house.copy()
        while outcome is None:
            with self._clock("data"):
                batch = None
                if self._virtual is not None:
                    batch = next(batches)
                elif not solver.draws:
                    batch = require_batch(next(batches, None), f"train_batches, for step {position.step + 1},")
            for layer in told_the_step:
                layer.step = position.step
            stats = solver.step(batch)
            if self._virtual is not None and (position.step + 1) % DIGEST_EVERY == 0:
                stats = replace(stats, scalars={**stats.scalars, DIGEST: digest(self._world, [solver.model])})
            house.count(stats)
            evaluated = house.last or position.step % self._evaluate_every == 0
            outcome = None
            with house.but_for_the_lost():
                if evaluated:
                    self._evaluate()
                outcome = house.settle(evaluated=evaluated)
        return outcome

    def _evaluate(self) -> None:
        self._house.catch_up()
        self._solver.gather()
        with self._clock("evaluate"):
            scores = evaluate(self._world, self._workload, self._solver.model, self._virtual)
        self._house.evaluated(scores)
        if self._debug:
            digest(self._world, [self._solver.model])


def evaluate(
    world: World, workload: Workload, model: torch.nn.Module, virtual: VirtualRanks | None = None
) -> dict[str, float]:
    """Scores over all test samples; those of virtual ranks are added in a fixed tree. Collective.

    Raises:
        HpcoptError: on all ranks: one of them cannot read or score its part.
    """
    ranks = virtual or VirtualRanks(world.size, world.rank, world.size)
    training = model.training
    model.eval()
    with world.together(), torch.no_grad():
        parts = []
        for part in ranks.held:
            with nullcontext() if virtual is None else drawing_by(ranks.seed_of(part, 0, "test")):
                parts.append(_summed(workload, model, workload.test_batches(part, ranks.count)))
        some = next(filter(None, parts), None)
        if some is None:  # more ranks than samples: what others add up, without a sample
            some = _summed(workload, model, itertools.islice(workload.test_batches(0, 1), 1))
        if not some:
            raise DataError("the workload has no test samples, or no scores")
        zeros = {name: torch.zeros_like(value) for name, value in some.items()}
        flat = [torch.cat([value.reshape(-1) for value in (sums or zeros).values()]) for sums in parts]
    model.train(training)
    if virtual is None:
        total = world.all_reduce(flat[0])
    else:
        total = fixed_tree.total(world, virtual, flat, "scores of virtual ranks")
    split = torch.split(total, [value.numel() for value in zeros.values()])
    reduced = {name: part.view_as(zeros[name]) for name, part in zip(zeros, split, strict=True)}
    with world.together():
        return workload.finish(reduced)


def _summed(workload: Workload, model: torch.nn.Module, batches: Iterator[Any]) -> dict[str, Tensor]:
    """What batches add to the scores, float64."""
    sums: dict[str, Tensor] = {}
    for batch in batches:
        for name, value in workload.score(model, batch).items():
            sums[name] = value.detach().double() + sums.get(name, 0.0)
    return {name: value.cpu() for name, value in sums.items()}
