"""A loop of one's own, with all that a job has around its loop.

    import hpcopt

    with hpcopt.Session("runs/own", steps=1000) as session:
        session.keep(model=model, optimizer=optimizer)
        for batch in session.steps(loader):
            ...
            session.log(loss=loss)

Started by ``python`` or by ``mpirun`` alike. The run directory, its lock, checkpoints, metrics, signals, time budget
and exit codes are those of ``hpcopt train``, by the same parts (``hpcopt.trainer``).
"""

import atexit
import threading
from collections.abc import Iterable, Iterator, Mapping, Sized
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import tomli_w
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from hpcopt.comm.world import World, connect
from hpcopt.errors import EXIT_DONE, JobError
from hpcopt.exchange import Exchange, ExchangeConfig, RingConfig
from hpcopt.phases import PhaseClock
from hpcopt.randomness import seed_all, set_all_random_states
from hpcopt.shapes.context import Context
from hpcopt.shapes.solver import Tree
from hpcopt.shapes.stats import Scalar
from hpcopt.shapes.workload import Better
from hpcopt.solvers.local.steps import LocalSteps, LocalStepsConfig
from hpcopt.trainer.ending import Ending
from hpcopt.trainer.feed import Feed
from hpcopt.trainer.housekeeping import Housekeeping, Outcome
from hpcopt.trainer.kept import Kept
from hpcopt.trainer.run import RunConfig
from hpcopt.trainer.script import in_a_script, job_of, run_config, told_by_batch_script
from hpcopt.trainer.services import Services, open_directory
from hpcopt.trainer.signals import StopSignals
from hpcopt.trainer.told import Told, number
from hpcopt.workloads.order import share
from hpcopt.workloads.sampler import StepSampler

BODY = "body"  # phase: what the loop's body does that is no other phase


class Requeue(SystemExit):
    """Ends a program whose run is checkpointed before its end: start the same command again."""


class Session:
    """One start of a run, while it is entered; all methods but ``say`` and ``every`` are for all ranks at once.

    An error that its message explains ends the program with that message and its exit code, any other with its
    traceback; the ranks end together. With a ``world`` of somebody else's, errors are raised as ever instead.

    Attributes:
        world, device: of this rank.
        clock: counts phases: ``with session.clock("forward"): ...``
        run: settings.
        step: steps done; the one under way is not.
    """

    world: World
    device: torch.device
    clock: PhaseClock
    run: RunConfig

    def __init__(
        self,
        run_dir: Path | str,
        *,
        settings: Mapping[str, Any] | None = None,
        fresh: bool = False,
        resume: bool = False,
        world: World | None = None,
        **run: Any,
    ) -> None:
        """Say what will be; nothing happens before it is entered.

        Args:
            run_dir: for job.toml, metrics.h5, checkpoints/ and log.txt; ``HPCOPT_RUN_DIR`` overrides it. A directory
                with a checkpoint is resumed.
            settings: of the script's own, plain data, for its records.
            fresh: start over; an existing directory is moved aside.
            resume: there must be a checkpoint.
            world: of ranks that are connected already.
            run: keys of a job's ``[run]`` section, such as ``steps``, ``seed``, ``time_budget``, ``checkpoint_every``.
        """
        self._path, self._own_settings, self._run = Path(run_dir), dict(settings or {}), run
        self._fresh, self._required, self._given_world = fresh, resume, world
        self._open, self._ending = ExitStack(), Ending(wording=in_a_script)
        self._signals = StopSignals()
        self._exchanges: list[Exchange] = []
        self._sampler: StepSampler | None = None
        self._house: Housekeeping | None = None
        self._random: Tree = None
        self._outcome = Outcome.LEFT
        self._told = Told()
        self._scores: dict[str, tuple[float, Better]] = {}
        self._under_way = False

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException as error:
            self._leave(error)
            raise
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        if error is None or (isinstance(error, SystemExit) and (isinstance(error, Requeue) or not error.code)):
            try:
                self._finish()
            except BaseException as failure:
                self._leave(failure)
                raise
        self._leave(error)

    @property
    def step(self) -> int:
        return self._position.step

    @property
    def weight(self) -> float:
        """Factor of this rank's mean loss in the step under way; 1 unless the ranks' shares of a batch are uneven."""
        return 1.0 if self._sampler is None else self._sampler.weight(self.step)

    def seed(self, purpose: str) -> int:
        """A seed for one purpose, from the run's seed, the same on all ranks."""
        return self._context.seed(purpose)

    def say(self, text: str) -> None:
        """Print a line and log it: rank 0's."""
        self._services.progress.say(text)

    def every(self, steps: int) -> bool:
        """Whether the step under way is one of every so many, or the last."""
        return (self.step + 1) % steps == 0 or (self._house is not None and self.step + 1 >= self._house.total)

    def keep(self, **things: Any) -> None:
        """Have things in every checkpoint, by these names; if the directory has one, they go on from it, here.

        Before the loop. What can be kept, and whose state counts where ranks differ, says ``hpcopt.trainer.kept``.

        Raises:
            JobError: on all ranks: a thing cannot be kept; the message says why.
            CheckpointError: on all ranks: the checkpoint lacks a thing, or has another.
        """
        self._keep(things, own=False)

    def keep_own(self, **things: Any) -> None:
        """As ``keep``, for things with a ``state_dict`` that is each rank's own."""
        self._keep(things, own=True)

    def exchange(
        self, model: nn.Module, config: ExchangeConfig | None = None, *, mean: bool = True, name: str = "exchange"
    ) -> Exchange:
        """Have a model's gradients exchanged: their means over the ranks, unless ``mean`` is off; the model starts as
        rank 0's. What its codec owes is kept, as ``name``.

        After ``keep(model=...)`` and before the loop. Then ``exchange.finish()`` stands behind ``backward()``.
        """
        config = config or RingConfig()
        seed = self.seed(name)
        exchange = Exchange(self.world, model, config, mean=mean, seed=seed, clock=self.clock)
        self._keep({name: exchange}, own=False)
        self._exchanges.append(exchange)
        return exchange

    def local(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: LocalStepsConfig | None = None,
        *,
        exchange: ExchangeConfig | None = None,
        name: str = "local",
    ) -> LocalSteps:
        """Have ranks train on their own, and their changes averaged now and then: ``local.step()`` stands behind
        ``optimizer.step()``, and ``with local.stated():`` around what looks at the model that all have in common.

        After ``keep(model=..., optimizer=...)`` and before the loop. Each rank's own values are kept, as ``name``.
        """
        config = config or LocalStepsConfig()
        exchange = exchange or (RingConfig() if config.gossip is None else None)
        local = LocalSteps(
            model, optimizer, config, world=self.world, exchange=exchange, seed=self.seed(name), clock=self.clock
        )
        self._keep({name: local}, own=False)
        return local

    def sampler(self, data: Sized | int, batch: int, *, uneven: bool = False) -> StepSampler:
        """Which samples this rank takes: ``DataLoader(data, batch_sampler=session.sampler(data, batch=128))``.

        Global batches are the same sets of samples at any number of ranks, and go on where the run stands.

        Args:
            data: a data set, or its length.
            batch: samples in a step, over all ranks.
            uneven: ranks may have shares that differ by a sample: then multiply the loss by ``session.weight``.
        """
        samples = data if isinstance(data, int) else len(data)
        self._sampler = StepSampler(
            samples,
            batch,
            seed=self.run.seed,
            rank=self.world.rank,
            size=self.world.size,
            start=lambda: self.step,
            uneven=uneven,
        )
        self._keep({"sampler": self._sampler}, own=False)
        return self._sampler

    def share(self, data: Dataset[Any]) -> Subset[Any]:
        """This rank's part of a data set, to score; the ranks' parts differ in length by at most one."""
        mine = share(np.arange(len(data)), self.world.rank, self.world.size)  # type: ignore[arg-type]
        return Subset(data, mine.tolist())

    def steps(self, loader: Iterable[Any] | None = None) -> Iterator[Any]:
        """Give a batch a step, or without a loader the number of each step, until the run's end.

        It ends at the run's steps or target; at a signal or the end of the time budget it checkpoints and ends the
        program with exit code 85. A loop left by ``break`` ends the run there; the step counts if it has logged
        something.

        Raises:
            DivergedError: on all ranks: a logged loss or a kept parameter is not finite.
        """
        batches, house = self._begin(loader), self._housekeeping()
        outcome, data, body = house.standing(), self.clock("data"), self.clock(BODY)
        while outcome is None:
            with data:
                batch = next(batches)
            self._under_way = True
            self._kept.go_on()
            with body:
                yield batch
            self._under_way = False
            house.count(self._told.stats(self.world.size, self._exchanges))
            outcome = house.settle(evaluated=bool(self._scores) and self._evaluate())
        house.save_last()
        self._outcome = outcome
        if outcome.exit_code != EXIT_DONE:
            raise Requeue(outcome.exit_code)

    def log(self, **scalars: Scalar | Tensor | float) -> None:
        """Record numbers of the step under way: their means over the ranks that give them, unless one says otherwise,
        as in ``Scalar(tokens, "sum")``. ``loss`` is the one that progress shows and that must stay finite: all ranks'
        mean, or a ``Scalar(loss, "sum")`` where some ranks have none. ``learning_rate`` is rank 0's.
        """
        self._told.add(scalars)

    def evaluation(
        self, *, higher: Mapping[str, float] | None = None, lower: Mapping[str, float] | None = None
    ) -> None:
        """Record scores, of which higher or lower ones are better, of the parameters as they are. Rank 0's count.

        In the loop or after it.
        """
        self._scores |= {name: (number(name, value), "higher") for name, value in (higher or {}).items()}
        self._scores |= {name: (number(name, value), "lower") for name, value in (lower or {}).items()}
        if not self._under_way:
            self._evaluate()

    def sum(self, *values: Tensor | float) -> list[float]:
        """Add numbers up over the ranks: ``correct, seen = session.sum(correct, seen)``."""
        return self.world.sum([number("sum", value) for value in values])

    def _start(self) -> None:
        """Find the ranks and the directory, and where the run stands. Collective."""
        self.run = run_config(self._run, self._path)
        if threading.current_thread() is threading.main_thread():
            self._open.enter_context(self._signals)
            self._signals.listen_for(self.run.requeue_signal)
        world = self._given_world or connect(self.run.backend, self.run.debug)
        self.world, self._ending.world = world, world if self._given_world is None else None
        self._path, self.run = told_by_batch_script(self._path, self.run, world)
        directory = open_directory(self._path, world, fresh=self._fresh)
        self._services = services = Services(self.run, world, directory, self._path.name)
        self._open.enter_context(services)
        self.device, self.clock = services.device, PhaseClock((BODY,))
        self._job = job_of(self.run, self._own_settings)
        self._context = Context(world=world, device=self.device, clock=self.clock, run_seed=self.run.seed)
        seed_all(self.run.seed)  # models that ranks make alike begin alike
        self._kept = Kept(world, self.say)
        self._position = services.resume(self._kept, self._job, required=self._required, go_on=self._note_random)

    def _note_random(self, states: Tree) -> None:
        """Not at once: until the loop begins, things are made anew, with random numbers."""
        self._random = states

    def _keep(self, things: Mapping[str, Any], *, own: bool) -> None:
        if self._house is not None:
            raise JobError(f"keep({', '.join(things)}) stands before the loop: it may be resumed there").everywhere()
        for name, thing in things.items():
            self._kept.add(name, thing, own=own)

    def _begin(self, loader: Iterable[Any] | None) -> Iterator[Any]:
        """All that the loop needs; its batches. Collective."""
        if self._house is not None:
            raise JobError("a Session has one loop: begin a second run in another").everywhere()
        per_pass: int | None = None
        batches: Iterator[Any] = iter(lambda: self.step + 1, None)
        if loader is not None:
            feed = Feed(loader, self.world, self.say)
            self._keep({"loader": feed}, own=False)
            batches, per_pass = iter(feed), feed.steps_per_pass
        if forgotten := self._kept.unclaimed():
            self.say(f"warning: the checkpoint also has {', '.join(forgotten)}, which nobody keeps any more")
        self._prepare(per_pass)
        if self._random is not None:
            set_all_random_states(self._random)
        else:
            seed_all(self.run.seed * 1_000_003 + self.world.rank)  # what a rank draws from here on is its own
        return batches

    def _prepare(self, per_pass: int | None) -> None:
        """Make the housekeeping. Collective."""
        services, batch = self._services, self._sampler.batch if self._sampler else None
        total = self.run.total_steps(per_pass)
        services.progress.begin(total)
        job = {**self._job, **({"workload": {"batch": batch}} if batch else {})}
        self._house = Housekeeping(
            run=self.run,
            context=replace(self._context, steps=total),
            state=self._kept,
            checkpoints=services.checkpoints,
            recorder=services.record(self._position, self.clock, job, tomli_w.dumps(job)),
            progress=services.progress,
            position=self._position,
            signals=self._signals,
        )
        self._house.batch, self._house.steps_per_epoch = batch, per_pass
        self._open.enter_context(self._house.noting_divergence())

    def _housekeeping(self) -> Housekeeping:
        assert self._house is not None
        return self._house

    def _count(self) -> bool:
        """Take the step under way; whether it was evaluated. Collective."""
        self._under_way = False
        self._housekeeping().count(self._told.stats(self.world.size, self._exchanges))
        return self._evaluate()

    def _evaluate(self) -> bool:
        """Record the scores that were told, if there are any. Collective, then."""
        scores, self._scores = self._scores, {}
        if not scores:
            return False
        if self._house is None:
            raise JobError("evaluation(...) stands in the loop or after it").everywhere()
        values = self.world.broadcast(torch.tensor([value for value, _ in scores.values()], dtype=torch.float64))
        self._house.better = {**self._house.better, **{name: better for name, (_, better) in scores.items()}}
        self._house.evaluated(dict(zip(scores, values.tolist(), strict=True)))
        return True

    def _finish(self) -> None:
        """End the run, as it is. Collective."""
        if self._house is None:
            return
        if self._under_way and self._told:
            self._count()
        self._house.save_last()
        self._house.finish(self._outcome)

    def _leave(self, error: BaseException | None) -> None:
        """Let go of everything; if the ranks are ours, the program ends here where it does not go on."""
        self._open.__exit__(None if error is None else type(error), error, None)
        if self._given_world is not None:
            return
        ending, requeue = self._ending, isinstance(error, Requeue)
        told = None if requeue else error
        ending.__exit__(None if told is None else type(told), told, None)
        ending.exit_code = self._outcome.exit_code if requeue else ending.exit_code
        if ending.exit_code != EXIT_DONE:
            ending.leave_exit_code()
            raise SystemExit(ending.exit_code) from None
        atexit.register(ending.leave_exit_code)  # not now: what follows in the program may fail, or be another Session
