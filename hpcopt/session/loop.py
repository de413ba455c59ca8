"""The one loop of a Session: batches for its steps, what they tell, and the housekeeping between them."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import tomli_w
import torch
from torch import nn

from hpcopt.errors import EXIT_DONE, JobError
from hpcopt.exchange import Exchange
from hpcopt.session.parts import Parts
from hpcopt.session.start import BODY, Requeue, Start
from hpcopt.shapes.workload import Better
from hpcopt.solvers.over_virtual import OverVirtualRanks
from hpcopt.trainer.feed import Feed
from hpcopt.trainer.housekeeping import Housekeeping
from hpcopt.trainer.told import Told, number
from hpcopt.trainer.virtual import DIGEST, DIGEST_EVERY, digest
from hpcopt.workloads.sampler import StepSampler


class Loop:
    """Its methods are collective, but for ``told``'s.

    Attributes:
        told: numbers of the step under way.
        exchanges, models: of ``Session.exchange``.
        sampler: whose batches it is; None if nobody knows.
        house: once it has begun.
    """

    def __init__(self, start: Start) -> None:
        self._start = start
        self._scores: dict[str, tuple[float, Better]] = {}
        self._under_way = False
        self.told = Told()
        self.exchanges: list[Exchange] = []
        self.models: list[nn.Module] = []
        self._parts: Parts | None = None
        self.sampler: StepSampler | None = None
        self.house: Housekeeping | None = None

    def keep(self, things: Mapping[str, Any], *, own: bool = False) -> None:
        """See ``Session.keep``."""
        if self.house is not None:
            raise JobError(f"keep({', '.join(things)}) stands before the loop: it may be resumed there").everywhere()
        for name, thing in things.items():
            self._start.kept.add(name, thing, own=own)

    def steps(self, loader: Iterable[Any] | None) -> Iterator[Any]:
        """See ``Session.steps``."""
        start, told = self._start, self.told
        batches, house = self._begin(loader)
        size, clock = start.world.size, start.context.clock
        outcome, data, body = house.standing(), clock("data"), clock(BODY)
        while outcome is None:
            with data:
                batch = next(batches)
            self._under_way = True
            start.kept.go_on()
            with body:
                yield batch
            self._under_way = False
            if start.context.virtual is not None:
                self._end_of_virtual_step()
            house.count(told.stats(size, self.exchanges))
            outcome = house.settle(evaluated=bool(self._scores) and self._evaluate(house))
        house.save_last()
        start.outcome = outcome
        if outcome.exit_code != EXIT_DONE:
            raise Requeue(outcome.exit_code)

    @property
    def weight(self) -> float:
        """See ``Session.weight``."""
        place = 0 if self._parts is None else self._parts.place
        return 1.0 if self.sampler is None else self.sampler.weight(self._start.position.step, place)

    def parts(self, batch: Any) -> Iterator[Any]:
        """See ``Session.parts``."""
        start, ranks = self._start, self._start.context.virtual
        if ranks is None:
            for exchange in self.exchanges:
                exchange.zero()
            yield batch
            for exchange in self.exchanges:
                exchange.finish()
            return
        if not self.models or self.sampler is None:
            raise JobError(
                "parts(batch) cuts batches of session.sampler(...) and sums gradients of session.exchange(model): make "
                "both before the loop"
            ).everywhere()
        if self._parts is None:
            over = OverVirtualRanks(self.models, self.exchanges, start.world, ranks)
            self._parts = Parts(over, ranks, self.told)
        step = start.position.step
        yield from self._parts.of(batch, self.sampler.lengths(step), step)

    def _end_of_virtual_step(self) -> None:
        """See that it was one, and that all ranks still have the same."""
        step = self._start.position.step
        if self._parts is None or self._parts.step != step:
            raise JobError(
                'reproducible = "any ranks": go through the parts of each batch, "for part in session.parts(batch)"'
            ).everywhere()
        if (step + 1) % DIGEST_EVERY == 0:
            self.told.add({DIGEST: digest(self._start.world, self.models)})

    def score(self, scores: Mapping[str, float], better: Better) -> None:
        """Note scores; the step under way takes them with it."""
        self._scores |= {name: (number(name, value), better) for name, value in scores.items()}

    def evaluate(self) -> None:
        """Record the scores that are noted, if no step takes them with it."""
        if self._under_way or not self._scores:
            return
        if self.house is None:
            raise JobError("evaluation(...) stands in the loop or after it").everywhere()
        self._evaluate(self.house)

    def finish(self) -> None:
        """End the run, as it is; a step that was left in the middle counts if it has told something."""
        if self.house is None:
            return
        if self._under_way and self.told:
            self._under_way = False
            self.house.count(self.told.stats(self._start.world.size, self.exchanges))
            self.evaluate()
        self.house.save_last()
        self.house.finish(self._start.outcome)

    def _evaluate(self, house: Housekeeping) -> bool:
        """Record the scores, of which there are some; give True."""
        scores, self._scores = self._scores, {}
        values = torch.tensor([value for value, _ in scores.values()], dtype=torch.float64)
        values = self._start.world.broadcast(values)
        house.better = {**house.better, **{name: better for name, (_, better) in scores.items()}}
        house.evaluated(dict(zip(scores, values.tolist(), strict=True)))
        return True

    def _begin(self, loader: Iterable[Any] | None) -> tuple[Iterator[Any], Housekeeping]:
        """All that the loop needs; its batches."""
        start = self._start
        if self.house is not None:
            raise JobError("a Session has one loop: begin a second run in another").everywhere()
        per_pass: int | None = None
        batches: Iterator[Any] = iter(lambda: start.position.step + 1, None)
        if loader is not None:
            feed = Feed(loader, start.world, start.services.progress.say)
            self.keep({"loader": feed})
            batches, per_pass = iter(feed), feed.steps_per_pass
        if forgotten := start.kept.unclaimed():
            names = ", ".join(forgotten)
            start.services.progress.say(f"warning: the checkpoint also has {names}, which nobody keeps any more")
        self.house = house = self._housekeeping(per_pass)
        start.open.enter_context(house.noting_divergence())
        start.draw_on()
        return batches, house

    def _housekeeping(self, per_pass: int | None) -> Housekeeping:
        start, services, batch = self._start, self._start.services, self.sampler.batch if self.sampler else None
        total = start.run.total_steps(per_pass)
        services.progress.begin(total)
        job = {**start.job, **({"workload": {"batch": batch}} if batch else {})}
        house = Housekeeping(
            run=start.run,
            context=replace(start.context, steps=total),
            state=start.kept,
            checkpoints=services.checkpoints,
            recorder=services.record(start.position, start.context.clock, job, tomli_w.dumps(job)),
            progress=services.progress,
            position=start.position,
            signals=start.signals,
        )
        house.batch, house.steps_per_epoch = batch, per_pass
        return house
