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

from collections.abc import Iterable, Iterator, Mapping, Sized
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from hpcopt.comm.virtual import VirtualRanks
from hpcopt.comm.world import World
from hpcopt.errors import JobError
from hpcopt.exchange import Exchange, ExchangeConfig, RingConfig
from hpcopt.phases import PhaseClock
from hpcopt.session.loop import Loop
from hpcopt.session.start import Requeue, Start
from hpcopt.shapes.stats import Scalar
from hpcopt.trainer.run import RunConfig
from hpcopt.trainer.told import number
from hpcopt.workloads.order import share
from hpcopt.workloads.sampler import StepSampler

if TYPE_CHECKING:
    from hpcopt.solvers.local.steps import LocalSteps, LocalStepsConfig


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
        self._start = Start(Path(run_dir), run, dict(settings or {}), fresh=fresh, resume=resume, world=world)
        self._loop = Loop(self._start)

    def __enter__(self) -> Self:
        start = self._start
        try:
            start.enter()
        except BaseException as error:
            start.leave(error)
            raise
        self.world, self.device, self.clock, self.run = start.world, start.device, start.context.clock, start.run
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        if error is None or (isinstance(error, SystemExit) and (isinstance(error, Requeue) or not error.code)):
            try:
                self._loop.finish()
            except BaseException as failure:
                self._start.leave(failure)
                raise
        self._start.leave(error)

    @property
    def step(self) -> int:
        return self._start.position.step

    @property
    def weight(self) -> float:
        """Factor of this rank's mean loss in the step under way, or of a part's within ``parts``; 1 unless shares of a
        batch are uneven.
        """
        return self._loop.weight

    def seed(self, purpose: str) -> int:
        """A seed for one purpose, from the run's seed, the same on all ranks."""
        return self._start.context.seed(purpose)

    def say(self, text: str) -> None:
        """Print a line and log it: rank 0's."""
        self._start.services.progress.say(text)

    def every(self, steps: int) -> bool:
        """Whether the step under way is one of every so many, or the last."""
        house, step = self._loop.house, self.step + 1
        return step % steps == 0 or (house is not None and step >= house.total)

    def keep(self, **things: Any) -> None:
        """Have things in every checkpoint, by these names; if the directory has one, they go on from it, here.

        Before the loop. What can be kept, and whose state counts where ranks differ, says ``hpcopt.trainer.kept``.

        Raises:
            JobError: on all ranks: a thing cannot be kept; the message says why.
            CheckpointError: on all ranks: the checkpoint lacks a thing, or has another.
        """
        own = [name for name, thing in things.items() if hasattr(thing, "rank_state_dict")]
        if own and self._start.context.virtual is not None:
            raise JobError(
                f'reproducible = "any ranks": keep({own[0]}=...) has a state of each rank\'s own, which depends on '
                'their number; for K-FAC, take a job with [solver] name = "kaisa"'
            ).everywhere()
        self._loop.keep(things)

    def keep_own(self, **things: Any) -> None:
        """As ``keep``, for things with a ``state_dict`` that is each rank's own."""
        self._loop.keep(things, own=True)

    def exchange(
        self, model: nn.Module, config: ExchangeConfig | None = None, *, mean: bool = True, name: str = "exchange"
    ) -> Exchange:
        """Have a model's gradients exchanged: their means over the ranks, unless ``mean`` is off; the model starts as
        rank 0's. What its codec owes is kept, as ``name``.

        After ``keep(model=...)`` and before the loop. Then ``exchange.finish()`` stands behind ``backward()``.
        """
        config = config or RingConfig()
        seed = self.seed(name)
        virtual = self._start.context.virtual
        exchange = Exchange(self.world, model, config, mean=mean, seed=seed, clock=self.clock, virtual=virtual)
        self._loop.keep({name: exchange})
        self._loop.exchanges.append(exchange)
        self._loop.models.append(model)
        return exchange

    def local(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: "LocalStepsConfig | None" = None,
        *,
        exchange: ExchangeConfig | None = None,
        name: str = "local",
    ) -> "LocalSteps":
        """Have ranks train on their own, and their changes averaged now and then: ``local.step()`` stands behind
        ``optimizer.step()``, and ``with local.stated():`` around what looks at the model that all have in common.

        After ``keep(model=..., optimizer=...)`` and before the loop. Each rank's own values are kept, as ``name``.
        """
        from hpcopt.solvers.local.steps import LocalSteps, LocalStepsConfig

        if self._start.context.virtual is not None:
            raise JobError('reproducible = "any ranks": take exchange(...), for local(...) trains by rank').everywhere()
        config = config or LocalStepsConfig()
        exchange = exchange or (RingConfig() if config.gossip is None else None)
        local = LocalSteps(
            model, optimizer, config, world=self.world, exchange=exchange, seed=self.seed(name), clock=self.clock
        )
        self._loop.keep({name: local})
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
        self._loop.sampler = sampler = StepSampler(
            samples,
            batch,
            seed=self.run.seed,
            ranks=self._start.context.virtual or VirtualRanks(self.world.size, self.world.rank, self.world.size),
            start=lambda: self.step,
            uneven=uneven,
        )
        self._loop.keep({"sampler": sampler})
        return sampler

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
        return self._loop.steps(loader)

    def parts(self, batch: Any) -> Iterator[Any]:
        """Go through a batch, from zero gradients to exchanged ones:
        ``for x, y in session.parts(batch): loss(model(x), y).backward()``.

        It is one part, unless with ``reproducible="any ranks"``: then there is one for each virtual rank that this rank
        holds, of which each draws, and changes buffers, as a rank of its own. What is logged inside is put together
        over all of them. Gradients, buffers and numbers have the same bits on any number of ranks.

        Args:
            batch: as the loader of ``session.sampler`` gives it: tensors with the samples along their first dimension,
                in lists, tuples and dictionaries.

        Raises:
            JobError: on all ranks: it is something else, or parts log different names.
        """
        return self._loop.parts(batch)

    def log(self, **scalars: Scalar | Tensor | float) -> None:
        """Record numbers of the step under way: their means over the ranks that give them, unless one says otherwise,
        as in ``Scalar(tokens, "sum")``. ``loss`` is the one that progress shows and that must stay finite: all ranks'
        mean, or a ``Scalar(loss, "sum")`` where some ranks have none. ``learning_rate`` is rank 0's.
        """
        self._loop.told.add(scalars)

    def evaluation(
        self, *, higher: Mapping[str, float] | None = None, lower: Mapping[str, float] | None = None
    ) -> None:
        """Record scores, of which higher or lower ones are better, of the parameters as they are. Rank 0's count.

        In the loop or after it.
        """
        self._loop.score(higher or {}, "higher")
        self._loop.score(lower or {}, "lower")
        self._loop.evaluate()

    def sum(self, *values: Tensor | float) -> list[float]:
        """Add numbers up over the ranks: ``correct, seen = session.sum(correct, seen)``."""
        return self.world.sum([number("sum", value) for value in values])
