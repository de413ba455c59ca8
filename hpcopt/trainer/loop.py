"""The loop: steps, evaluation, checkpoints, metrics, signals."""

import itertools
import math
import time
from collections.abc import Iterator
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from hpcopt.comm.world import World
from hpcopt.errors import EXIT_DIVERGED, EXIT_DONE, EXIT_REQUEUE, DivergedError
from hpcopt.shapes.context import Context
from hpcopt.shapes.solver import Solver
from hpcopt.shapes.stats import StepStats, Table
from hpcopt.shapes.workload import Workload
from hpcopt.store.checkpoint import Checkpoints
from hpcopt.trainer.meetings import Meetings, Verdict
from hpcopt.trainer.pace import Pace
from hpcopt.trainer.progress import Progress
from hpcopt.trainer.recorder import Recorder
from hpcopt.trainer.resume import Position
from hpcopt.trainer.run import RunConfig
from hpcopt.trainer.saver import Saver
from hpcopt.trainer.signals import StopSignals


class Outcome(Enum):
    """Why a run ended; the value is the process's exit code."""

    DONE = (EXIT_DONE, "all steps done")
    TARGET = (EXIT_DONE, "target reached")
    SIGNAL = (EXIT_REQUEUE, "told to stop by a signal")
    TIME = (EXIT_REQUEUE, "time budget used up")

    @property
    def exit_code(self) -> int:
        return self.value[0]


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
    ) -> None:
        self._world, self._clock, self._total = context.world, context.clock, context.total_steps
        self._run, self._workload, self._solver = run, workload, solver
        self._recorder, self._progress, self._position, self._signals = recorder, progress, position, signals
        self._evaluate_every = run.evaluate_every or workload.steps_per_epoch or self._total
        self._pace = Pace(run.checkpoint_every, run.checkpoint_share, at_evaluations=solver.pipelined)
        self._meetings = Meetings(lockstep=solver.lockstep, every_s=run.log_every_s)
        self._tables: dict[str, Table] = {}
        self._start_s = time.monotonic()
        self._saver = Saver(
            context.world,
            checkpoints,
            run.checkpoint_in_background,
            position.step,
            clock=context.clock,
            one_file=run.checkpoint_one_file,
        )

    def train(self) -> Outcome:
        """Run to the end, whichever it is. Collective.

        Raises:
            DivergedError: on all ranks, when the loss or the parameters are no longer finite.
        """
        first_step = self._position.step
        try:
            outcome = self._steps()
            self._saver.finish()
            if self._position.step != self._saver.saved_step:
                self._save()
                self._saver.finish()
        except DivergedError as error:
            if error.on_every_rank:
                self._recorder.finish("diverged", EXIT_DIVERGED)
            raise
        self._recorder.finish(outcome.value[1], outcome.exit_code)
        done, total = self._position.step, self._total
        if done == first_step and outcome is Outcome.DONE:
            self._progress.say(f"nothing to do: the run is at step {done}, and the job asks for {total}")
        else:
            self._progress.say(f"{outcome.value[1]} after step {done} of {total}")
        self._summarise()
        return outcome

    def _steps(self) -> Outcome:
        position = self._position
        batches = self._workload.train_batches(self._solver.data_rank, self._solver.data_size, position.step)
        while position.step < self._total:
            if self._target_reached():
                return Outcome.TARGET
            with self._clock("data"):
                batch = next(batches)
            stats = self._solver.step(batch)
            position.step += 1
            verdict = self._agree(stats.loss) if self._meetings.due(position.step) else Verdict(False, stats.loss)
            self._record(verdict.loss, stats)
            self._go_on_if_finite(verdict)
            if verdict.flush:
                self._recorder.flush()
            if verdict.written:
                self._finish_saving()
            last = position.step == self._total
            evaluated = last or position.step % self._evaluate_every == 0
            if evaluated:
                self._evaluate()
            if not last and self._pace.due(position.step, wanted=verdict.save, evaluated=evaluated):
                self._save()
            if not last and verdict.stop:
                return Outcome.SIGNAL
            if not last and verdict.late:
                return Outcome.TIME
        return Outcome.TARGET if self._target_reached() else Outcome.DONE

    def _go_on_if_finite(self, verdict: Verdict) -> None:
        """Raise DivergedError if the loss is not finite: on all ranks, if they met."""
        if verdict.loss is None or math.isfinite(verdict.loss):
            return
        step = self._position.step
        if verdict.met:
            self._saver.give_up(step - 1)
        error = DivergedError(f"the loss became {verdict.loss} at step {step}; {self._saver.kept()}")
        error.on_every_rank = verdict.met
        raise error

    def _agree(self, loss: float | None) -> Verdict:
        """Sum the ranks' parts of the loss, None if no rank has one; stop, hurry or flush on all ranks if one wants to,
        take a checkpoint for written if all have written, save and meet again when rank 0 wants to. Collective.
        """
        first = self._world.rank == 0
        save = first and not self._saver.under_way and self._pace.wanted(self._saver.took_s)
        wish = self._meetings.wish(self._recorder.step_times_s[-16:]) if first else 0
        flush = self._recorder.flush_due(self._run.log_every_s)
        stop = self._signals.received is not None
        mine = [loss or 0.0, loss is not None, stop, self._late(), flush, self._saver.written, save, wish]
        with self._clock("exchange"):
            total, landed, *votes = self._world.all_reduce(torch.tensor(mine, dtype=torch.float64)).tolist()
        self._meetings.met(self._position.step, int(votes[5]))
        return Verdict(
            met=True,
            loss=total if landed else None,
            stop=votes[0] > 0,
            late=votes[1] > 0,
            flush=votes[2] > 0,
            written=votes[3] == self._world.size,
            save=votes[4] > 0,
        )

    def _late(self) -> bool:
        budget_s = self._run.time_budget
        if budget_s is None:
            return False
        longest_step_s = max(self._recorder.step_times_s[-16:], default=0.0)
        return time.monotonic() - self._start_s + 2 * longest_step_s > budget_s

    def _record(self, loss: float | None, stats: StepStats) -> None:
        step = self._position.step
        for name, table in stats.tables.items():
            if table.lasting and self._tables.get(name) is not table:
                self._tables[name] = table
                self._progress.say("\n".join(table.lines()))
        epoch = step / (self._workload.steps_per_epoch or math.nan)
        phases = self._recorder.step(step, epoch, step * self._workload.batch, stats)
        step_s = self._recorder.step_times_s[-1]
        self._progress.step(step, loss, self._workload.batch / step_s, phases["exchange"] / step_s)

    def _target_reached(self) -> bool:
        target = self._run.stop_at
        return target is not None and target.reached(self._position.scores, self._workload.scores)

    def _evaluate(self) -> None:
        self._solver.gather()
        with self._clock("evaluate"):
            self._position.scores = evaluate(self._world, self._workload, self._solver.model)
        self._recorder.evaluation(self._position.step, self._position.scores, self._workload.scores)
        scores = " ".join(f"{name}={value:.4f}" for name, value in self._position.scores.items())
        self._progress.say(f"step={self._position.step}/{self._total} {scores}")
        if wrong := [name for name, value in self._position.scores.items() if not math.isfinite(value)]:
            self._progress.say(f"warning: {' and '.join(wrong)} {'is' if len(wrong) == 1 else 'are'} not finite")
        if self._run.debug:
            self._world.require_same(list(self._solver.model.state_dict().values()), "the parameters")

    def _save(self) -> None:
        self._recorder.flush()
        self._position.elapsed_s = self._recorder.elapsed_s
        with self._clock("checkpoint"):
            self._saver.save(self._position, self._solver, self._workload.state_dict())

    def _finish_saving(self) -> None:
        with self._clock("checkpoint"):
            self._saver.finish()

    def _summarise(self) -> None:
        """Print one line for each figure of merit, FOM name value unit: of this start, as a report has them."""
        step_s, sent_bytes = self._recorder.typical()
        figures: list[tuple[str, float, str]] = [(name, value, "1") for name, value in self._position.scores.items()]
        figures += [("steps", self._position.step, "1"), ("elapsed", self._recorder.ended_s, "s")]
        if math.isfinite(step_s):
            figures += [
                ("step_time_median", step_s, "s"),
                ("samples_per_second", self._workload.batch / step_s, "1/s"),
                ("sent_bytes_per_step", sent_bytes, "byte"),
            ]
        for name, value, unit in figures:
            self._progress.say(f"FOM {name} {value:.6g} {unit}")


def evaluate(world: World, workload: Workload, model: torch.nn.Module) -> dict[str, float]:
    """Scores over all test samples. Collective.

    Raises:
        HpcoptError: on all ranks: one of them cannot read or score its part.
    """
    training = model.training
    model.eval()
    with world.together(), torch.no_grad():
        sums = _summed(workload, model, workload.test_batches(world.rank, world.size))
        if not sums:  # more ranks than samples: what others add up, without a sample
            some = _summed(workload, model, itertools.islice(workload.test_batches(0, 1), 1))
            sums = {name: torch.zeros_like(value) for name, value in some.items()}
    model.train(training)
    total = world.all_reduce(torch.cat([value.reshape(-1) for value in sums.values()]))
    parts = torch.split(total, [value.numel() for value in sums.values()])
    reduced = {name: part.view_as(sums[name]) for name, part in zip(sums, parts, strict=True)}
    with world.together():
        return workload.finish(reduced)


def _summed(workload: Workload, model: torch.nn.Module, batches: Iterator[Any]) -> dict[str, Tensor]:
    """What batches add to the scores, float64."""
    sums: dict[str, Tensor] = {}
    for batch in batches:
        for name, value in workload.score(model, batch).items():
            sums[name] = value.detach().cpu().double() + sums.get(name, 0.0)
    return sums
