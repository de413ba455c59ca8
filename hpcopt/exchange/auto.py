"""An exchange that measures the machine when it starts and gives each bucket the collective that is fastest there.

Exact sums are chosen freely among MPI_Allreduce, recursive doubling and the ring (its sums, by way of memory where all
ranks share it). A codec, if the job names one, is used for the buckets where it saves time on this network, and for no
other; beside it, bfloat16 around the ring. So are sums within a bound, if it gives one. Where signs are all that is
asked for, a vote is one more way, and the others give the signs of sums. With ``measure_again`` the choice is made anew
during the run, from what really travels (``hpcopt.exchange.trials``).

What a bucket takes decides how its sum is rounded, so all ranks follow rank 0's choice, and a run that goes on from a
checkpoint keeps the choice that it began with; on another number of ranks it chooses anew.
"""

import math
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from hpcopt.comm import dense, doubling
from hpcopt.comm.alpha_beta import CodecCost, Line, Machine
from hpcopt.comm.calibration import calibrate, codec_cost
from hpcopt.comm.transport import Transport
from hpcopt.comm.world import World
from hpcopt.compress import Bounded, Codec, CodecConfig, Dense, Half, SignBits
from hpcopt.compress.finite import BOUND_BYTES, can_be_sent
from hpcopt.exchange.bucket import Bucket
from hpcopt.exchange.choices import EXACT, Choice, Choices, choose, chosen_again, decide
from hpcopt.exchange.config import Gives
from hpcopt.exchange.lossy import AnyCodec, Lossy, TwoPhaseConfig, TwoPhaseReducer, agreed_bound
from hpcopt.exchange.reducer import Reducer, Tree
from hpcopt.exchange.signs import VoteConfig, VoteReducer
from hpcopt.exchange.trials import ROUNDS, Trial
from hpcopt.exchange.ways import (
    Doubling,
    HalfRing,
    Native,
    Ring,
    TwoPhase,
    TwoPhaseByNodes,
    Vote,
    Way,
    WithinBound,
    lossy_codec,
)
from hpcopt.store.saved_parts import SavedParts


class AutoConfig(Lossy):
    """Measures links and kernels at the start, then takes the fastest collective for each bucket."""

    name: Literal["auto"] = "auto"
    codec: AnyCodec = Field(Dense(), description="used for the buckets where it saves time; dense: sums stay exact")
    bounded: Bounded | None = Field(None, description="sums within this bound are another way, where they save time")
    signs: bool = Field(
        False,
        description="give signs, to an optimizer that steps by them: by a vote, or those of sums where they are faster",
    )
    calibration_s: float = Field(2.0, gt=0, description="seconds for measuring, at most, about")
    measure_again: tuple[int, ...] = Field(
        (),
        description="steps from which on each way carries all buckets for some steps, and the fastest is kept",
    )

    @model_validator(mode="after")
    def _signs_are_of_exact_sums(self) -> "AutoConfig":
        if self.signs and (self.bounded or not isinstance(self.codec, Dense)):
            raise ValueError("signs = true leaves no use for codec and bounded: signs come by votes or of plain sums")
        return self

    @property
    def gives(self) -> Gives:
        return "signs" if self.signs else "sums"

    def build(self, seed: int) -> "AutoReducer":
        """Make the reducer."""
        return AutoReducer(self, seed)


class AutoReducer(Reducer):
    """Gives each bucket to one of the ways."""

    def __init__(self, config: AutoConfig, seed: int) -> None:
        self._config = config
        two_phase = TwoPhaseConfig(codec=config.codec, feedback=config.feedback)
        by_nodes = TwoPhaseConfig(codec=config.codec, feedback=config.feedback, by_nodes=True)
        self._lossy = TwoPhase(TwoPhaseReducer(two_phase, seed)), TwoPhaseByNodes(TwoPhaseReducer(by_nodes, seed))
        self._votes = VoteReducer(VoteConfig()) if config.signs else None
        ways: list[Way] = [Native(), Doubling(), Ring(), HalfRing(always=config.signs), *self._lossy]
        if config.bounded is not None:
            ways.append(WithinBound(config.bounded))
        if self._votes is not None:
            self.grain = self._votes.grain
            ways.append(Vote(self._votes))
        self._ways = {way.name: way for way in ways}
        self._buckets: Sequence[Bucket] = ()
        self._indebted: set[int] = set()
        self._trial: Trial | None = None

    def kind(self, name: str, parameter: nn.Parameter) -> Hashable:
        return self._lossy[0].reducer.kind(name, parameter)

    def prepare(self, world: World, transport: Transport, buckets: Sequence[Bucket]) -> None:
        """Measure, and choose; a rehearsal does neither."""
        self._buckets = buckets
        if not transport.point_to_point:
            return
        if not isinstance(self._config.codec, Dense):
            for way in self._lossy:
                way.reducer.prepare(world, transport, buckets)
        counted = world.traffic.lap()
        self.choices = self._measure(world)
        world.traffic.lap()
        world.traffic.add(counted)

    def warm(self, size: int, buckets: Sequence[Bucket]) -> None:
        super().warm(size, buckets)
        if self._votes is not None:
            self._votes.warm(size, buckets)

    def packed_signs(self, momentum: float) -> Callable[[Bucket, nn.Parameter], Tensor]:
        return super().packed_signs(momentum) if self._votes is None else self._votes.packed_signs(momentum)

    def reduce(self, transport: Transport, bucket: Bucket, step: int) -> None:
        if bucket.index == 0 and self._begins_trial(step) and transport.size > 1 and self.choices:
            self._trial = Trial(step, [list(choice.predicted_s) for choice in self.choices.buckets])
        way = self._way(bucket)
        if self._trial is not None:
            way = self._ways[self._trial.way(bucket.index, step)]
            if self._trial.changes(step):
                self._owe([bucket])
        start_s = time.perf_counter()
        self._reduce_by(way, transport, bucket, step)
        if self._trial is not None:
            self._trial.record(bucket.index, step, time.perf_counter() - start_s)

    def finish_step(self, transport: Transport, buckets: Sequence[Bucket], step: int) -> None:
        """At the end of a trial, all ranks choose by what it has measured."""
        if self._trial is None:
            return
        self._trial.ready([bucket.ready_s for bucket in buckets])
        if step < self._trial.last:
            return
        if not self._trial.planned and self._trial.complete:
            step_s = torch.tensor([self._trial.step_s], dtype=torch.float64)
            self._trial.plan(float(dense.all_reduce(transport, step_s, "max")))
            if step < self._trial.last:
                return
        trial, self._trial = self._trial, None
        self._owe(buckets)
        if self.choices is None or not trial.complete:
            return
        seconds, ready_s = trial.measured(dense.all_reduce(transport, trial.table(), "min"))
        ways, waited_s, exact_s = decide(seconds, ready_s)
        self.choices = chosen_again(self.choices, ways, seconds, step + 1, waited_s, exact_s)

    def _begins_trial(self, step: int) -> bool:
        """Whether one is asked for; one that is on goes on."""
        return self._trial is None and step in self._config.measure_again

    def _owe(self, buckets: Sequence[Bucket]) -> None:
        """Their next sums pay what other ways than theirs still owe."""
        if not isinstance(self._config.codec, Dense):
            self._indebted.update(bucket.index for bucket in buckets)

    def _reduce_by(self, way: Way, transport: Transport, bucket: Bucket, step: int) -> None:
        if bucket.index in self._indebted:
            if not can_be_sent(agreed_bound(transport, bucket.values), 1.0, self._config.codec):
                bucket.values.fill_(math.nan)  # the debt stays, and the sum is exact
                return
            for other in self._lossy:
                if other is not way:
                    other.reducer.settle(bucket)
            self._indebted.discard(bucket.index)
        if self._votes is None or isinstance(way, Vote):
            way.carry(transport, bucket, step)
        else:
            self._votes.by_sum(transport, bucket, partial(way.carry, transport, bucket, step))

    def planned_bytes(self, bucket: Bucket, size: int, rank: int) -> int:
        """Before anything is measured, those of the ring; with trials to come, those of the way that sends most."""
        ways = [self._way(bucket)]
        if self.choices is not None and self._config.measure_again:
            ways += [self._ways[name] for name in self.choices.buckets[bucket.index].predicted_s]
        return max(way.planned_bytes(bucket, size, rank) for way in ways)

    def finish_bytes(self, size: int, rank: int) -> int:
        """Of a trial's end, with the agreements that go with debts."""
        if not self._config.measure_again:
            return 0
        times = (ROUNDS * len(self._ways) + 1) * len(self._buckets)
        agreements = len(self._buckets) * doubling.planned_bytes(BOUND_BYTES, size, rank)
        length = dense.planned_bytes(8, size, rank)
        return length + dense.planned_bytes(8 * times, size, rank) + agreements

    def plan(self) -> str:
        lossy = [self._config.codec.name] * (not isinstance(self._config.codec, Dense))
        lossy += ["bounded"] * (self._config.bounded is not None) + ["vote"] * self._config.signs
        others = f"; {' or '.join(lossy)} where it is at least 5 % faster" if lossy else ""
        return (
            f"auto: links and kernels are measured for {self._config.calibration_s:g} s at the start, then each of "
            f"{len(self._buckets)} buckets takes the fastest of {', '.join(EXACT)}{others}"
        )

    def state_dict(self) -> Tree:
        return {
            "algorithms": [self._way(bucket).name for bucket in self._buckets],
            "values": [bucket.values.numel() for bucket in self._buckets],
            "lossy": {way.name: way.reducer.state_dict() for way in self._lossy},
            "votes": {} if self._votes is None else self._votes.state_dict(),
        }

    def load_state_dict(self, parts: Sequence[Tree], rank: int, size: int) -> None:
        """Keep the saved choice, if as many ranks made it for the same buckets; what is then owed by a way that a
        bucket no longer goes is paid with the next step.
        """
        saved = parts[rank % len(parts)]
        if "lossy" not in saved:  # another exchange's
            return
        for way in self._lossy:
            way.reducer.load_state_dict(SavedParts.of(parts).under("lossy", way.name), rank, size)
        if self._votes is not None and saved.get("votes"):
            self._votes.load_state_dict(SavedParts.of(parts).under("votes"), rank, size)
        self._indebted = {bucket.index for bucket in self._buckets}
        same = len(parts) == size and saved["values"] == [bucket.values.numel() for bucket in self._buckets]
        if same and self.choices is not None:
            self.choices.source = "as in the checkpoint"
            self.choices.buckets = [
                replace(choice, algorithm=algorithm)
                for choice, algorithm in zip(self.choices.buckets, saved["algorithms"], strict=True)
            ]

    def _way(self, bucket: Bucket) -> Way:
        return self._ways[self.choices.buckets[bucket.index].algorithm if self.choices else Ring.name]

    def _measure(self, world: World) -> Choices:
        if world.size == 1:
            machine = Machine((0,), Line(), Line(), Line(), ((1.0, 0.0),))
        else:
            machine = calibrate(world, self._config.calibration_s)
        costs = self._codec_costs(world)
        predicted = [self._predicted(machine, bucket, costs) for bucket in self._buckets]
        # Rank 0 decides: another rank's processor may round the same numbers to another fit.
        names = list(self._ways)
        chosen = world.broadcast_integers([names.index(choose(times)) for times in predicted])
        return Choices(
            [
                Choice(b.nbytes, self._label_of(b) if set(times) - set(EXACT) else "", names[number], times)
                for b, times, number in zip(self._buckets, predicted, chosen, strict=True)
            ],
            machine,
            {_label(codec): cost for codec, cost in costs.items()},
        )

    def _label_of(self, bucket: Bucket) -> str:
        """Of what the bucket may travel in beside bfloat16; "" if it must stay exact."""
        codec = lossy_codec(bucket) or self._config.bounded or (SignBits() if self._config.signs else None)
        return "" if codec is None else _label(codec)

    def _predicted(self, machine: Machine, bucket: Bucket, costs: dict[CodecConfig, CodecCost]) -> dict[str, float]:
        """Seconds of every way that can carry a bucket."""
        times = {}
        for name, way in self._ways.items():
            codec = way.codec(bucket)
            times[name] = way.predicted_s(machine, bucket, None if codec is None else costs.get(codec))
        return {name: seconds for name, seconds in times.items() if seconds is not None}

    def _codec_costs(self, world: World) -> dict[CodecConfig, CodecCost]:
        """Measured on the longest bucket of each codec."""
        longest: dict[CodecConfig, int] = {}
        for bucket in self._buckets if world.size > 1 else ():
            for way in self._ways.values():
                if (codec := way.codec(bucket)) is not None:
                    longest[codec] = max(longest.get(codec, 0), bucket.values.numel())
        seconds = self._config.calibration_s / 5 / max(1, len(longest))
        return {codec: codec_cost(world, codec, self._feeds_back(codec), n, seconds) for codec, n in longest.items()}

    def _feeds_back(self, codec: CodecConfig) -> bool:
        if not isinstance(codec, Codec) or isinstance(codec, Half) or self._config.signs:
            return False
        return self._lossy[0].reducer.keeps_residuals(codec)


def _label(codec: CodecConfig) -> str:
    """The codec's name, with settings that are not the usual ones."""
    settings = codec.model_dump(exclude_defaults=True, exclude={"name"})
    return " ".join([codec.name, *(f"{key}={value}" for key, value in settings.items())])
