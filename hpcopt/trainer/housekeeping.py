"""What a run does between two steps, whoever made them: the ranks agree, record, save, and end together."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum

from hpcopt.errors import EXIT_DIVERGED, EXIT_DONE, EXIT_REQUEUE, DivergedError
from hpcopt.shapes.context import Context
from hpcopt.shapes.solver import Checkpointed, Tree
from hpcopt.shapes.stats import StepStats, Table
from hpcopt.shapes.workload import Better
from hpcopt.store.checkpoint import Checkpoints
from hpcopt.trainer.meetings import Meetings
from hpcopt.trainer.pace import Pace
from hpcopt.trainer.progress import Progress
from hpcopt.trainer.recorder import Recorder
from hpcopt.trainer.resume import Position
from hpcopt.trainer.run import RunConfig
from hpcopt.trainer.saver import Saver
from hpcopt.trainer.signals import StopSignals
from hpcopt.trainer.votes import Verdict, Votes


class Outcome(Enum):
    """Why a run ended; the value is the process's exit code."""

    DONE = (EXIT_DONE, "all steps done")
    TARGET = (EXIT_DONE, "target reached")
    LEFT = (EXIT_DONE, "ended by its script")
    SIGNAL = (EXIT_REQUEUE, "told to stop by a signal")
    TIME = (EXIT_REQUEUE, "time budget used up")

    @property
    def exit_code(self) -> int:
        return self.value[0]


class Housekeeping:
    """Of one start of a run: call ``count`` after each step, then ``settle``; in the end ``save_last`` and ``finish``.
    All of them are called on all ranks at the same steps.

    Attributes:
        total: steps of the whole run.
        batch: samples in a step over all ranks; None if nobody knows.
        steps_per_epoch: None if nobody knows.
        better: which direction is better, of each score.
    """

    def __init__(
        self,
        *,
        run: RunConfig,
        context: Context,
        state: Checkpointed,
        checkpoints: Checkpoints,
        recorder: Recorder,
        progress: Progress,
        position: Position,
        signals: StopSignals,
        lockstep: bool = True,
        save_at_evaluations: bool = False,
        data: Callable[[], Tree] = lambda: None,
    ) -> None:
        """Get ready.

        Args:
            run: its settings.
            context: ranks, clock and length.
            state: what is saved.
            checkpoints: where to.
            recorder, progress: who is told.
            position: where the run stands; it is moved.
            signals: that may stop it.
            lockstep: see ``Meetings``.
            save_at_evaluations: see ``Pace``.
            data: gives this rank's own state of the data.
        """
        self._world, self._clock, self.total = context.world, context.clock, context.total_steps
        self._run, self._state, self._data = run, state, data
        self._recorder, self._progress, self._position, self._signals = recorder, progress, position, signals
        self._pace = pace = Pace(run.checkpoint_every, run.checkpoint_share, at_evaluations=save_at_evaluations)
        self._meetings = meetings = Meetings(lockstep=lockstep, every_s=run.log_every_s)
        self._tables: dict[str, Table] = {}
        self._first_step = position.step
        self._verdict = Verdict(met=False, loss=None)
        self.batch: int | None = None
        self.steps_per_epoch: int | None = None
        self.better: Mapping[str, Better] = {}
        self._saver = saver = Saver(
            context.world,
            checkpoints,
            run.checkpoint_in_background,
            position.step,
            clock=context.clock,
            one_file=run.checkpoint_one_file,
        )
        self._votes = Votes(
            context.world,
            run,
            clock=context.clock,
            meetings=meetings,
            recorder=recorder,
            saver=saver,
            pace=pace,
            signals=signals,
        )

    @property
    def last(self) -> bool:
        """Whether all steps are done."""
        return self._position.step >= self.total

    @contextmanager
    def noting_divergence(self) -> Iterator[None]:
        """Around the loop: a run that diverges on all ranks has that in its metrics; whatever ends it, nothing goes on
        writing into its directory.
        """
        try:
            yield
        except DivergedError as error:
            if error.on_every_rank:
                self._recorder.finish("diverged", EXIT_DIVERGED)
            raise
        finally:
            self._saver.close()

    def count(self, stats: StepStats) -> None:
        """Take a finished step. Collective, if the ranks meet.

        Raises:
            DivergedError: the loss is no longer finite: on all ranks, if they met.
        """
        position = self._position
        position.step += 1
        meet = self._meetings.lockstep or self._meetings.due(position.step)
        self._verdict = verdict = self._votes.sum_up(position.step, stats.loss) if meet else Verdict(False, stats.loss)
        self._record(verdict.loss, stats)
        if verdict.loss is not None and not math.isfinite(verdict.loss):
            raise self._diverged(verdict)
        if verdict.flush:
            self._recorder.flush()
            self._votes.granted()
        if verdict.written:
            with self._clock("checkpoint"):
                self._saver.finish()
            self._votes.granted()

    def evaluated(self, scores: dict[str, float]) -> None:
        """Take the scores after the steps up to here, the same on all ranks. Collective."""
        step = self._position.step
        self._position.scores = scores
        self._recorder.evaluation(step, scores, self.better)
        text = " ".join(f"{name}={value:.4f}" for name, value in scores.items())
        self._progress.say(f"step={step}/{self.total} {text}")
        if wrong := [name for name, value in scores.items() if not math.isfinite(value)]:
            self._progress.say(f"warning: {' and '.join(wrong)} {'is' if len(wrong) == 1 else 'are'} not finite")

    def settle(self, *, evaluated: bool) -> Outcome | None:
        """Save if it is time to; say why the run ends after the step that was counted, if it does. Collective.

        Args:
            evaluated: whether the step ended with an evaluation.
        """
        step, verdict = self._position.step, self._verdict
        if step < self.total:
            if self._pace.due(step, wanted=verdict.save, evaluated=evaluated):
                self._save()
            if verdict.stop:
                return Outcome.SIGNAL
            if verdict.late:
                return Outcome.TIME
        return self.standing()

    def standing(self) -> Outcome | None:
        """Why there is no further step, if there is none: the target is reached, or all steps are done."""
        target = self._run.stop_at
        if target is not None and target.reached(self._position.scores, self.better):
            return Outcome.TARGET
        return Outcome.DONE if self._position.step >= self.total else None

    def save_last(self) -> None:
        """Save where the run stands, if that is not done. Collective."""
        self._saver.finish()
        if self._position.step != self._saver.saved_step:
            self._save()
            self._saver.finish()

    def finish(self, outcome: Outcome) -> None:
        """Write what is left, and tell why the run ended. Collective."""
        self._recorder.finish(outcome.value[1], outcome.exit_code)
        done, total = self._position.step, self.total
        if done == self._first_step and outcome is Outcome.DONE:
            self._progress.say(f"nothing to do: the run is at step {done}, and the job asks for {total}")
        else:
            self._progress.say(f"{outcome.value[1]} after step {done} of {total}")
        self._summarise()

    def _diverged(self, verdict: Verdict) -> DivergedError:
        """What is wrong with a loss that is not finite: on all ranks, if they met."""
        step = self._position.step
        if verdict.met:
            self._saver.give_up(step - 1)
        error = DivergedError(f"the loss became {verdict.loss} at step {step}; {self._saver.kept()}")
        error.on_every_rank = verdict.met
        return error

    def _record(self, loss: float | None, stats: StepStats) -> None:
        step = self._position.step
        for name, table in stats.tables.items():
            if table.lasting and self._tables.get(name) is not table:
                self._tables[name] = table
                self._progress.say("\n".join(table.lines()))
        epoch, samples = step / (self.steps_per_epoch or math.nan), step * self.batch if self.batch else None
        phases = self._recorder.step(step, epoch, samples, stats)
        step_s = self._recorder.step_times_s[-1]
        self._progress.step(step, loss, step_s, self.batch, phases["exchange"] / step_s)

    def _save(self) -> None:
        self._recorder.flush()
        self._position.elapsed_s = self._recorder.elapsed_s
        with self._clock("checkpoint"):
            self._saver.save(self._position, self._state, self._data())
        self._votes.granted()

    def _summarise(self) -> None:
        """Print one line for each figure of merit, FOM name value unit: of this start, as a report has them."""
        step_s, sent_bytes = self._recorder.typical()
        figures: list[tuple[str, float, str]] = [(name, value, "1") for name, value in self._position.scores.items()]
        figures += [("steps", self._position.step, "1"), ("elapsed", self._recorder.ended_s, "s")]
        if math.isfinite(step_s):
            figures += [("step_time_median", step_s, "s")]
            figures += [("samples_per_second", self.batch / step_s, "1/s")] if self.batch else []
            figures += [("sent_bytes_per_step", sent_bytes, "byte")]
        for name, value, unit in figures:
            self._progress.say(f"FOM {name} {value:.6g} {unit}")
