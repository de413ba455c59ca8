"""An exchange that measures the machine when it starts and gives each bucket the collective that is fastest there.

Exact sums are chosen freely among MPI_Allreduce, recursive doubling and the ring (its sums, by way of memory where all
ranks share it). A codec, if the job names one, is used for the buckets where it saves time on this network, and for no
other.

What a bucket takes decides how its sum is rounded, so all ranks follow rank 0's choice, and a run that goes on from a
checkpoint keeps the choice that it began with; on another number of ranks it chooses anew.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Literal

from pydantic import Field
from torch import nn

from hpcopt.comm import dense, doubling
from hpcopt.comm.alpha_beta import Line, Machine
from hpcopt.comm.calibration import calibrate, codec_cost
from hpcopt.comm.traffic import dense_all_reduce_bytes
from hpcopt.comm.transport import Transport
from hpcopt.comm.world import World
from hpcopt.compress import Codec, Dense, Half
from hpcopt.compress.finite import can_be_sent
from hpcopt.exchange.bucket import Bucket
from hpcopt.exchange.choices import EXACT, Choice, Choices, choose, predict
from hpcopt.exchange.reducer import Reducer, Tree
from hpcopt.exchange.two_phase import AnyCodec, Lossy, TwoPhaseConfig, TwoPhaseReducer, agreed_bound
from hpcopt.store.saved_parts import SavedParts

LOSSY = {"two_phase": False, "two_phase_by_nodes": True}  # whether by nodes


class AutoConfig(Lossy):
    """Measures links and kernels at the start, then takes the fastest collective for each bucket."""

    name: Literal["auto"] = "auto"
    codec: AnyCodec = Field(Dense(), description="used for the buckets where it saves time; dense: sums stay exact")
    calibration_s: float = Field(2.0, gt=0, description="seconds for measuring, at most, about")

    def build(self) -> "AutoReducer":
        """Make the reducer."""
        return AutoReducer(self)


class AutoReducer(Reducer):
    """One reducer for each way that a bucket can go."""

    def __init__(self, config: AutoConfig) -> None:
        self._config = config
        self._lossy = {
            name: TwoPhaseReducer(
                TwoPhaseConfig(codec=config.codec, feedback=config.feedback, seed=config.seed, by_nodes=by_nodes)
            )
            for name, by_nodes in LOSSY.items()
        }
        self._buckets: Sequence[Bucket] = ()
        self._indebted: set[int] = set()

    def kind(self, name: str, parameter: nn.Parameter) -> Hashable:
        return self._lossy["two_phase"].kind(name, parameter)

    def prepare(self, world: World, transport: Transport, buckets: Sequence[Bucket]) -> None:
        """Measure, and choose; a rehearsal does neither."""
        self._buckets = buckets
        if not transport.point_to_point:
            return
        if not isinstance(self._config.codec, Dense):
            for reducer in self._lossy.values():
                reducer.prepare(world, transport, buckets)
        counted = world.traffic.lap()
        self.choices = self._measure(world)
        world.traffic.lap()
        world.traffic.add(counted)

    def reduce(self, transport: Transport, bucket: Bucket, step: int) -> None:
        algorithm, values = self._algorithm(bucket), bucket.values
        if bucket.index in self._indebted:
            if not can_be_sent(agreed_bound(transport, values), 1.0, self._config.codec):
                values.fill_(math.nan)  # the debt stays
                return
            for name, reducer in self._lossy.items():
                if name != algorithm:
                    reducer.settle(bucket)
            self._indebted.discard(bucket.index)
        if algorithm == "native":
            with transport.traffic.waiting():
                transport.all_reduce(values)
        elif algorithm == "doubling":
            doubling.all_reduce(transport, values)
        elif algorithm in ("ring", "half_ring"):
            dense.long(transport, values, wire=bucket.kind.dtype if algorithm == "half_ring" else None)  # type: ignore[attr-defined]
        else:
            self._lossy[algorithm].reduce(transport, bucket, step)

    def planned_bytes(self, bucket: Bucket, size: int, rank: int) -> int:
        """Before anything is measured, those of the ring."""
        algorithm = self._algorithm(bucket)
        values_bytes = bucket.values.numel() * bucket.values.element_size()
        if algorithm in LOSSY:
            return self._lossy[algorithm].planned_bytes(bucket, size, rank)
        if algorithm == "doubling":
            return doubling.planned_bytes(values_bytes, size, rank)
        return dense_all_reduce_bytes(values_bytes // (2 if algorithm == "half_ring" else 1), size)

    def plan(self) -> str:
        codec = self._config.codec
        lossy = "" if isinstance(codec, Dense) else f"; {codec.name} where it is at least a tenth faster"
        return (
            f"auto: links and kernels are measured for {self._config.calibration_s:g} s at the start, then each of "
            f"{len(self._buckets)} buckets takes the fastest of {', '.join(EXACT)}{lossy}"
        )

    def state_dict(self) -> Tree:
        return {
            "algorithms": [self._algorithm(bucket) for bucket in self._buckets],
            "values": [bucket.values.numel() for bucket in self._buckets],
            "lossy": {name: reducer.state_dict() for name, reducer in self._lossy.items()},
        }

    def load_state_dict(self, parts: Sequence[Tree], rank: int, size: int) -> None:
        """Keep the saved choice, if as many ranks made it for the same buckets; what is then owed by a way that a
        bucket no longer goes is paid with the next step.
        """
        saved = parts[rank % len(parts)]
        if "lossy" not in saved:  # another exchange's
            return
        for name, reducer in self._lossy.items():
            reducer.load_state_dict(SavedParts.of(parts).under("lossy", name), rank, size)
        self._indebted = {bucket.index for bucket in self._buckets}
        same = len(parts) == size and saved["values"] == [bucket.values.numel() for bucket in self._buckets]
        if same and self.choices is not None:
            self.choices.kept = True
            self.choices.buckets = [
                replace(choice, algorithm=algorithm)
                for choice, algorithm in zip(self.choices.buckets, saved["algorithms"], strict=True)
            ]

    def _algorithm(self, bucket: Bucket) -> str:
        return self.choices.buckets[bucket.index].algorithm if self.choices else "ring"

    def _measure(self, world: World) -> Choices:
        if world.size == 1:
            machine = Machine((0,), Line(), Line(), Line(), ((1.0, 0.0),))
        else:
            machine = calibrate(world, self._config.calibration_s)
        longest: dict[Codec, int] = {}
        for bucket in self._buckets:
            if isinstance(codec := bucket.kind, Codec) and not isinstance(codec, Dense) and world.size > 1:
                longest[codec] = max(longest.get(codec, 0), bucket.values.numel())
        costs = {
            codec: codec_cost(
                world,
                codec,
                self._lossy["two_phase"].keeps_residuals(codec) and not isinstance(codec, Half),
                n,
                self._config.calibration_s / 5 / len(longest),
            )
            for codec, n in longest.items()
        }
        predicted = [
            predict(machine, b.values.numel() * b.values.element_size(), costs.get(b.kind), isinstance(b.kind, Half))  # type: ignore[call-overload]
            for b in self._buckets
        ]
        # Rank 0 decides: another rank's processor may round the same numbers to another fit.
        names = sorted({name for times in predicted for name in times})
        chosen = world.broadcast_integers([names.index(choose(times)) for times in predicted])
        return Choices(
            [
                Choice(
                    b.values.numel() * b.values.element_size(),
                    _label(b.kind) if b.kind in costs else "",
                    names[number],
                    times,
                )
                for b, times, number in zip(self._buckets, predicted, chosen, strict=True)
            ],
            machine,
            {_label(codec): cost for codec, cost in costs.items()},
        )


def _label(codec: Codec) -> str:
    """The codec's name, with settings that are not the usual ones."""
    settings = codec.model_dump(exclude_defaults=True, exclude={"name"})
    return " ".join([codec.name, *(f"{key}={value}" for key, value in settings.items())])
