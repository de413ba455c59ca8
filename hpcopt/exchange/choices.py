"""Which collective each bucket takes, what that was expected to take, and what it took."""

from collections import Counter, deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from hpcopt.comm.alpha_beta import CodecCost, Line, Machine
from hpcopt.comm.world import World
from hpcopt.store import strict_json

EXACT = ("native", "doubling", "ring")  # algorithms whose sums lose nothing but rounding
WORTH = (  # ways up to a loss, and the share of the best time without it which they must stay below
    ((*EXACT, "half_ring"), 0.97),
    (None, 0.95),  # all: codecs and bounded sums
)
KEPT_STEPS = 512  # measured times that wait for a reader


@dataclass(frozen=True)
class Choice:
    """One bucket's.

    Attributes:
        values_bytes: of the bucket.
        codec: name of what it may travel in; "" if it must stay exact.
        algorithm: what it takes.
        predicted_s: seconds of each algorithm that can carry it.
    """

    values_bytes: int
    codec: str
    algorithm: str
    predicted_s: Mapping[str, float]


@dataclass
class Choices:
    """Of all buckets, in their order; a table of metrics, in which a bucket is a row.

    Attributes:
        machine: what the predictions rest on.
        codecs: costs of codecs by name.
        source: where the algorithms are from.
        news: what has changed since other choices were told, with its numbers.
    """

    buckets: list[Choice]
    machine: Machine
    codecs: Mapping[str, CodecCost]
    source: str = "fastest by calibration"
    news: Sequence[str] = ()
    _seconds: deque[list[float]] = field(default_factory=lambda: deque(maxlen=KEPT_STEPS))
    _steps: int = 0
    _sum_s: Tensor | None = None

    def record(self, seconds: Sequence[float]) -> None:
        """Note what every bucket of one step took on this rank."""
        self._seconds.append(list(seconds))

    def lap(self) -> Tensor:
        """Give the times noted since the last lap, shape (steps, buckets), float64, in seconds."""
        seconds = torch.tensor(list(self._seconds), dtype=torch.float64).reshape(-1, len(self.buckets))
        self._seconds.clear()
        return seconds

    @property
    def lasting(self) -> bool:
        """They are of a whole start."""
        return True

    def columns(self, world: World) -> dict[str, np.ndarray | list[str]]:
        """What each bucket was expected to take and took: of every step the shortest time over the ranks, that of the
        rank which waited for none, and their mean. Collective.
        """
        times_s = world.all_reduce(self.lap(), "min")
        self._sum_s = times_s.sum(0) if self._sum_s is None else self._sum_s + times_s.sum(0)
        self._steps += len(times_s)
        count = len(self.buckets)
        measured_s = self._sum_s.numpy() / self._steps if self._steps else np.full(count, np.nan)
        return {
            "bucket": np.arange(count),
            "bytes": np.array([choice.values_bytes for choice in self.buckets]),
            "algorithm": [choice.algorithm for choice in self.buckets],
            "predicted_s": np.array([choice.predicted_s.get(choice.algorithm, np.nan) for choice in self.buckets]),
            "measured_s": measured_s,
            "steps": np.full(count, self._steps),
            **{
                f"predicted_{name}_s": np.array([choice.predicted_s.get(name, np.nan) for choice in self.buckets])
                for name in sorted({name for choice in self.buckets for name in choice.predicted_s})
            },
        }

    def attributes(self) -> dict[str, str]:
        """What was measured, as JSON."""
        measured = asdict(self.machine) | {"codecs": {name: asdict(cost) for name, cost in self.codecs.items()}}
        return {"calibration": strict_json.dumps(measured)}

    def lines(self) -> list[str]:
        """For a log: how many buckets take which algorithm, and a warning of each codec that none takes."""
        count = Counter(choice.algorithm for choice in self.buckets)
        total_s = sum(choice.predicted_s.get(choice.algorithm, 0.0) for choice in self.buckets)
        taken = ", ".join(f"{n} by {name}" for name, n in count.most_common())
        report = [f"exchange: buckets {taken} ({self.source}; {1e3 * total_s:.3g} ms a step expected)", *self.news]
        for name in dict.fromkeys(choice.codec for choice in self.buckets if choice.codec):
            with_codec = [choice for choice in self.buckets if choice.codec == name]
            if not any(choice.algorithm not in EXACT for choice in with_codec):
                report.append(self._warning(max(with_codec, key=lambda choice: choice.values_bytes)))
        return report

    def _warning(self, choice: Choice) -> str:
        exact = _fastest(choice.predicted_s, EXACT)
        lossy = _fastest(choice.predicted_s, choice.predicted_s.keys() - EXACT)
        exact_ms, lossy_ms = 1e3 * choice.predicted_s[exact], 1e3 * choice.predicted_s[lossy]
        cost, machine = self.codecs[choice.codec], self.machine
        link = machine.between if max(machine.nodes) else machine.inside
        rates = (
            f"payloads {cost.ratio:.3g} times shorter; encoding {_rate(cost.encode, choice.values_bytes)}, "
            f"decoding {_rate(cost.decode, choice.values_bytes)}, links {_rate(link, choice.values_bytes)}"
        )
        return (
            f"warning: codec {choice.codec} does not pay here and is not used: "
            f"a bucket of {choice.values_bytes / 1e6:.3g} MB would take {lossy_ms:.3g} ms by {lossy}, "
            f"and takes {exact_ms:.3g} ms by {exact} ({rates})"
        )


def choose(predicted_s: Mapping[str, float]) -> str:
    """The way of one bucket, as ``decide`` has it where computation hides nothing."""
    (way,), _, _ = decide([predicted_s], [0.0])
    return way


def decide(seconds: Sequence[Mapping[str, float]], ready_s: Sequence[float]) -> tuple[list[str], float, float]:
    """The way of each bucket, given its ways' seconds and when it is ready: the fastest of those whose loss is worth
    it, by what is then still waited for. bfloat16 must save 3 % of that with exact sums, and a codec 5 % of that with
    the best of both.

    Returns:
        The ways, and the seconds waited for with them and with exact sums.
    """

    def fastest(algorithms: Collection[str] | None) -> tuple[list[str], float]:
        ways = [_fastest(took_s, algorithms) for took_s in seconds]
        return ways, waited_s([took_s[way] for took_s, way in zip(seconds, ways, strict=True)], ready_s)

    exact = best = fastest(EXACT)
    for algorithms, share in WORTH:
        found = fastest(algorithms)
        if found[1] < share * best[1]:
            best = found
    return *best, exact[1]


def waited_s(seconds: Sequence[float], ready_s: Sequence[float]) -> float:
    """What is left when the last of some buckets is ready, which go one after the other and take so many seconds.

    >>> waited_s([2.0, 2.0, 1.0], [0.0, 1.0, 10.0])  # the first two are hidden
    1.0
    """
    end_s = 0.0
    for took_s, moment_s in zip(seconds, ready_s, strict=True):
        end_s = max(end_s, moment_s) + took_s
    return end_s - max(ready_s, default=0.0)


def chosen_again(
    before: Choices,
    ways: Sequence[str],
    seconds: Sequence[Mapping[str, float]],
    step: int,
    waited_s: float,
    exact_s: float,
) -> Choices:
    """Choices for the steps from ``step`` on, by times that were measured, with a line for each change.

    Args:
        waited_s, exact_s: what of a step's exchange computation does not hide, so and with exact sums.
    """
    news = [f"exchange: {1e3 * waited_s:.3g} ms a step are waited for, {1e3 * exact_s:.3g} ms with exact sums"]
    for index, (old, way, took_s) in enumerate(zip(before.buckets, ways, seconds, strict=True)):
        if way != old.algorithm:
            was_ms, is_ms = 1e3 * took_s[old.algorithm], 1e3 * took_s[way]
            news.append(
                f"exchange: bucket {index} ({old.values_bytes / 1e6:.3g} MB) goes by {way} ({is_ms:.3g} ms), no longer "
                f"by {old.algorithm} ({was_ms:.3g} ms)"
            )
    buckets = [
        replace(old, algorithm=way, predicted_s=took_s)
        for old, way, took_s in zip(before.buckets, ways, seconds, strict=True)
    ]
    return Choices(buckets, before.machine, before.codecs, f"fastest as measured before step {step}", news)


def _fastest(predicted_s: Mapping[str, float], algorithms: Collection[str] | None) -> str:
    """Of these algorithms, or of all; "" if there is none."""
    names = [name for name in predicted_s if algorithms is None or name in algorithms]
    return min(names, key=lambda name: predicted_s[name], default="")


def _rate(line: Line, nbytes: int) -> str:
    """At that size; a fitted line's slope alone may be none."""
    return f"{nbytes / line(nbytes) / 1e9:.3g} GB/s"
