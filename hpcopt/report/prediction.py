"""What a step would take on more ranks than were tried, and which exchange would win: hpcopt/report/step_model.py
fitted to runs.

Runs of all exchanges are fitted together, as they share the machine's links; those on the most ranks are first held out
and predicted by the others.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hpcopt.errors import MetricsError
from hpcopt.report.figure import ranks_text
from hpcopt.report.read import Run
from hpcopt.report.scaling import series_names
from hpcopt.report.step_model import Estimate, Measured, Setting, StepModel
from hpcopt.report.summary import Runs, Summary
from hpcopt.store.step_times import BESIDE_THE_STEP, BESIDE_THE_THREAD

REFUSED = "these runs cannot predict more ranks"
SOLVER, GOSSIP = "data_parallel", "gossip"  # a step of the one is computing and sums of gradients; the other has no sum


@dataclass(frozen=True)
class HeldOut:
    """The runs of a series on the most ranks: the median of what they took, and what the others predict."""

    series: str
    ranks: int
    measured_s: float
    predicted: Estimate

    @property
    def error(self) -> float:
        """Relative to what was measured."""
        return self.predicted.seconds / self.measured_s - 1


@dataclass(frozen=True)
class Row:
    """One number of ranks: a prediction for each series, None where its batch does not reach.

    Attributes:
        kind: "strong", the global batch of the runs, or "weak", the least batch a rank that they had.
    """

    kind: str
    ranks: int
    steps: dict[str, Estimate | None]

    @property
    def fastest(self) -> str | None:
        """Series with the shortest step."""
        known = {name: estimate.seconds for name, estimate in self.steps.items() if estimate is not None}
        return min(known, key=known.__getitem__) if len(known) > 1 else None


@dataclass(frozen=True)
class Prediction:
    """The model of some runs, what it says of the ones held out, and what it says of more ranks."""

    runs: int
    sizes: tuple[int, ...]
    oversubscribed: bool
    latency: Estimate
    s_per_byte: Estimate
    held_out: tuple[HeldOut, ...]
    rows: tuple[Row, ...]


def predict(runs: Runs, targets: Sequence[int]) -> Prediction:
    """Fit to runs of data parallelism by sums, on real ranks, of which it is known how many threads shared a core, and
    predict that many ranks.

    Raises:
        MetricsError: the runs cannot carry a prediction; the message says why.
    """
    names = series_names([run for run, _ in runs])
    kept = [(run, measured(run, s, name)) for (run, s), name in zip(runs, names, strict=True) if _usable(run, s)]
    _require_alike([run for run, _ in kept])
    known = [m for _, m in kept]
    series = {m.setting.series: [n for n in known if n.setting.series == m.setting.series] for m in known}
    for name, own in series.items():
        if len({m.setting.ranks for m in own}) < 2:
            raise MetricsError(f"{REFUSED}: {name} ran on {ranks_text(own[0].setting.ranks)} only")
    sizes = sorted({m.setting.ranks for m in known})
    model = StepModel(known)
    alpha, beta = model.alpha_beta()
    rows = [
        Row(kind, ranks, {name: _at(model, own, kind, ranks) for name, own in series.items()})
        for kind in ("strong", "weak")
        for ranks in targets
    ]
    steps = [estimate for row in rows for estimate in row.steps.values() if estimate is not None]
    if not all(math.isfinite(estimate.low_s) for estimate in (alpha, beta, *steps)):
        raise MetricsError(f"{REFUSED}: there are no more runs than unknowns, so no interval: add repeats or sizes")
    return Prediction(
        runs=len(known),
        sizes=tuple(sizes),
        oversubscribed=any(m.setting.load > 1 for m in known),
        latency=alpha,
        s_per_byte=beta,
        held_out=tuple(_hold_out(known, sizes)) if len(sizes) > 2 else (),
        rows=tuple(rows),
    )


def _require_alike(runs: Sequence[Run]) -> None:
    """Raise MetricsError unless one model can be made of runs."""
    if not runs:
        raise MetricsError(
            f"{REFUSED}: none of the runs is data parallelism by sums of gradients on ranks of their own"
        )
    tasks = {json.dumps({**run.config["workload"], "batch": None}, sort_keys=True) for run in runs}
    if len(tasks) > 1:
        raise MetricsError(
            f"{REFUSED}: the runs differ in what they train ([workload]), not in ranks and exchange alone"
        )
    if all(len(set(run.attributes.get("hostnames", ()))) < 2 for run in runs):
        raise MetricsError(f"{REFUSED}: each run was on one host, so that nothing is known of the links between hosts")


def measured(run: Run, summary: Summary, series: str) -> Measured:
    """Reduce a run to what the model is fitted to. The phases are scaled to the median step, and what none of the
    training thread's claims is "other".
    """
    batch, exchange = float(run.config["workload"]["batch"]), run.config["exchange"]
    whole_bytes = summary.dense_bytes / max(1, 2 * (run.ranks - 1))
    buckets = max(1, math.ceil(whole_bytes / (exchange["bucket_mb"] * 1e6)))
    scale = summary.step_s / float(run.step_s[run.warm].mean())
    claimed = {name: s for name, (s, _) in summary.phases.items()} | summary.overlapped
    seconds = {name: scale * s for name, s in claimed.items() if name not in (*BESIDE_THE_STEP, "other")}
    network_s = seconds.pop("comm", 0.0)
    claimed_s = sum(s for name, s in seconds.items() if name not in BESIDE_THE_THREAD)
    seconds.pop("exchange", None)
    seconds["other"] = max(0.0, summary.step_s - claimed_s)
    return Measured(
        Setting(
            series=series,
            ranks=run.ranks,
            samples=batch / run.ranks,
            load=max(1.0, float(run.attributes.get("threads_per_core", 1))),
            messages=2 * (run.ranks - 1) * buckets,
            nbytes=summary.sent_bytes / run.ranks,
            buckets=buckets if exchange.get("overlap") else 1,
        ),
        summary.step_s,
        seconds,
        network_s,
    )


def _usable(run: Run, summary: Summary) -> bool:
    config = run.config
    names = {section: config.get(section, {}).get("name") for section in ("solver", "exchange")}
    if names["solver"] != SOLVER or names["exchange"] in (None, GOSSIP) or not np.isfinite(summary.step_s):
        return False
    if config["run"].get("backend") in ("loopback", "rehearsal"):
        return False
    return not run.attributes.get("oversubscribed") or "threads_per_core" in run.attributes


def _hold_out(known: list[Measured], sizes: list[int]) -> list[HeldOut]:
    model = StepModel([m for m in known if m.setting.ranks < sizes[-1]])
    found = []
    for name in dict.fromkeys(m.setting.series for m in known):
        own = [m for m in known if m.setting.series == name]
        most = [m for m in own if m.setting.ranks == sizes[-1]]
        if most and len(most) < len(own):
            measured_s = float(np.median([m.step_s for m in most]))
            predicted = model.step(most[0].setting)
            found.append(HeldOut(name, sizes[-1], measured_s, predicted))
    return found


def _at(model: StepModel, own: list[Measured], kind: str, ranks: int) -> Estimate | None:
    """A series' step on so many ranks, each with a core a thread."""
    largest = max(own, key=lambda m: m.setting.ranks).setting
    samples = largest.samples if kind == "weak" else largest.samples * largest.ranks / ranks
    if samples < 1 or largest.messages == 0 or (kind == "strong" and len({m.setting.samples for m in own}) == 1):
        return None
    return model.step(on_more_ranks(largest, ranks, samples))


def on_more_ranks(setting: Setting, ranks: int, samples: float) -> Setting:
    """The same sums on more ranks: 2 (P - 1) messages a bucket, and 2 (P - 1) / P of the payload."""
    growth = (ranks - 1) / (setting.ranks - 1)
    messages, nbytes = setting.messages * growth, setting.nbytes * growth * setting.ranks / ranks
    return replace(setting, ranks=ranks, samples=samples, load=1.0, messages=messages, nbytes=nbytes)
