"""What a run does between two steps, whoever made them: the ranks agree, record, save, and end together."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum

from hpcopt.comm.links import LostRankError
from hpcopt.comm.roll_call import RollCall
from hpcopt.elastic.copies import Copies, RegroupSignal
from hpcopt.errors import EXIT_DIVERGED, EXIT_DONE, EXIT_REQUEUE, DivergedError
from hpcopt.shapes.context import Context
from hpcopt.shapes.solver import Checkpointed, Tree
from hpcopt.shapes.stats import StepStats, Table
from hpcopt.shapes.workload import Better
from hpcopt.store.checkpoint import Checkpoints
from hpcopt.trainer.losses import Losses
from hpcopt.trainer.meetings import Meetings
from hpcopt.trainer.pace import Pace
from hpcopt.trainer.progress import Progress
from hpcopt.trainer.recorder import Recorder
from hpcopt.trainer.resume import Position
from hpcopt.trainer.run import RunConfig
from hpcopt.trainer.saver import Saver, own_part, shared_part
from hpcopt.trainer.signals import StopSignals
from hpcopt.trainer.votes import Verdict, Votes

NO_STEP = -1


class Outcome(Enum):
    """Why a run ended; the value is the process's exit code."""

    DONE = (EXIT_DONE, "all steps done")
    TARGET = (EXIT_DONE, "target reached")
    LEFT = (EXIT_DONE, "ended by its script")
    SIGNAL = (EXIT_REQUEUE, "told to stop by a signal")
    TIME = (EXIT_REQUEUE, "time budget used up")
    FEW = (EXIT_REQUEUE, "too few ranks are left")

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
        late: bool = False,
        save_at_evaluations: bool = False,
        data: Callable[[], Tree] = lambda: None,
        copies: Copies | None = None,
        roll_call: RollCall | None = None,
        stand: Callable[[], None] = lambda: None,
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
            late: whether losses are read a step late; the same on all ranks.
            save_at_evaluations: see ``Pace``.
            data: gives this rank's own state of the data.
            copies: in memory, for a run that goes on when ranks are lost.
            roll_call: of the solver's rounds, which go on when ranks are lost, up to the last one of the group.
            stand: gets the state ready to be read after such a round, without the others.
        """
        self._world, self._clock, self.total = context.world, context.clock, context.total_steps
        self._run, self._state, self._data = run, state, data
        self._recorder, self._progress, self._position, self._signals = recorder, progress, position, signals
        self._pace = pace = Pace(run.checkpoint_every, run.checkpoint_share, at_evaluations=save_at_evaluations)
        self._meetings = meetings = Meetings(lockstep=lockstep, every_s=run.log_every_s)
        self._copies, self._roll_call, self._ready_to_stand = copies, roll_call, stand
        self._tables: dict[str, Table] = {}
        self._first_step = position.step
        self._verdict = Verdict(met=False, loss=None)
        self._losses = Losses(late=late, step=position.step)
        self._took_s = self._exchange_s = 0.0  # the newest step
        self.batch: int | None = None
        self.steps_per_epoch: int | None = None
        self.better: Mapping[str, Better] = {}
        self._saver = saver = Saver(
            context.world,
            checkpoints,
            run.checkpoint_in_background,
            NO_STEP if copies is not None and copies.steps() else position.step,  # what is in memory is not saved
            clock=context.clock,
            one_file=run.checkpoint_one_file,
            goes_on=run.storage_failure == "go_on",
            say=progress.say,
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
            begun_s=None if copies is None else copies.begun_s,
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
            DivergedError: the loss, or that of the step before, is no longer finite: on all ranks, if they met.
        """
        position = self._position
        position.step += 1
        meet = self._meetings.lockstep or self._meetings.due(position.step)
        loss = self._losses.take(position.step, stats.loss)
        self._verdict = verdict = Verdict(False, loss)
        if meet and not self._over:
            with self.but_for_the_lost():
                self._verdict = verdict = self._votes.sum_up(position.step, loss)
        self._record(stats)
        if self._over:
            self._stand()
        self._heed(verdict)
        if verdict.flush:
            self._recorder.flush()
            self._votes.granted()
        if verdict.written and self._saver.shown_good(self._losses.step):
            with self._clock("checkpoint"):
                self._saver.finish()
            self._votes.granted()

    @property
    def _over(self) -> bool:
        return self._copies is not None and self._roll_call is not None and self._roll_call.over

    @contextmanager
    def but_for_the_lost(self) -> Iterator[None]:
        """Around what all ranks do together between rounds: where one is lost it is left out, and the next round, which
        can do without, is the group's last.
        """
        try:
            yield
        except LostRankError:
            if self._roll_call is None or self._copies is None:
                raise

    def _stand(self) -> None:
        """Leave the group after a round that was its last. All others do so after the same step.

        Raises:
            RegroupSignal: on all ranks.
        """
        assert self._copies is not None
        self._position.elapsed_s = self._recorder.elapsed_s
        self._ready_to_stand()
        shared, own = shared_part(self._position, self._state), own_part(self._state, self._data())
        self._copies.stand(self._world.rank, self._position.step, shared, own, self._recorder.hand_over)
        raise RegroupSignal

    def catch_up(self) -> None:
        """Read the loss of the newest step, if that is still to be done: before the parameters are used. Collective.

        Raises:
            DivergedError: on all ranks: it is not finite.
        """
        if self._losses.behind:
            loss = self._losses.rest()
            total, landed = self._world.sum([loss or 0.0, loss is not None])
            self._heed(Verdict(True, total if landed else None))

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
        if (outcome := self.standing()) is None:
            self.copy()
        return outcome

    def copy(self) -> None:
        """Keep a copy in memory, if there are to be any, and it is time to. Collective.

        Raises:
            RegroupSignal: on all ranks: others wait to join, or are to leave.
        """
        if self._copies is None or not self._copies.due(self._position.step):
            return
        self.catch_up()
        with self._clock("checkpoint"):
            self._recorder.flush()
            self._position.elapsed_s = self._recorder.elapsed_s
            self._state.gather()
            shared, own = shared_part(self._position, self._state), own_part(self._state, self._data())
            self._copies.take(self._world, self._position.step, shared, own)

    def standing(self) -> Outcome | None:
        """Why there is no further step, if there is none: the target is reached, or all steps are done."""
        target = self._run.stop_at
        if target is not None and target.reached(self._position.scores, self.better):
            return Outcome.TARGET
        return Outcome.DONE if self._position.step >= self.total else None

    def save_last(self) -> None:
        """Save where the run stands, if that is not done. Collective."""
        self.catch_up()
        self._saver.finish()
        if self._position.step != self._saver.saved_step:
            self._save()
            self._saver.finish()
            self._saver.require_saved(self._position.step)

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
        step = self._losses.step
        if verdict.met:
            self._saver.give_up(step - 1)
        error = DivergedError(f"the loss became {verdict.loss} at step {step}; {self._saver.kept()}")
        error.on_every_rank = verdict.met
        return error

    def _heed(self, verdict: Verdict) -> None:
        """Tell of a loss, and end the run if it is not finite."""
        share = self._exchange_s / self._took_s
        self._progress.step(self._losses.step, verdict.loss, self._took_s, self.batch, share)
        if verdict.loss is not None and not math.isfinite(verdict.loss):
            raise self._diverged(verdict)

    def _record(self, stats: StepStats) -> None:
        step = self._position.step
        for name, table in stats.tables.items():
            if not table.lasting or self._tables.get(name) is not table:
                self._tables[name] = table
                self._progress.say("\n".join(table.lines()))
        epoch, samples = step / (self.steps_per_epoch or math.nan), step * self.batch if self.batch else None
        phases = self._recorder.step(step, epoch, samples, stats)
        self._took_s, self._exchange_s = self._recorder.step_times_s[-1], phases["exchange"]

    def _save(self) -> None:
        self.catch_up()
        self._recorder.flush()
        self._position.elapsed_s = self._recorder.elapsed_s
        with self._clock("checkpoint"):
            self._saver.save(self._position, self._state, self._data(), self._recorder.require_written)
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
