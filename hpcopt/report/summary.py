"""A run in a few figures: what ran, how far it came, how long a step takes and where the time and the bytes go."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hpcopt.report.attributes import plugins_of, printable
from hpcopt.report.pop import efficiencies
from hpcopt.report.read import Run
from hpcopt.report.target import Target, reached, target_of
from hpcopt.store.step_times import BESIDE_THE_STEP, BESIDE_THE_THREAD

QUIET_S = 300  # a run that wrote nothing for so long is not called running any more


@dataclass(frozen=True)
class Summary:
    """The figures of one run. Times of a step are over warm steps, each as long as its slowest rank took.

    Attributes:
        phases: name -> (mean seconds a step, share of the step time), of the training thread, over ranks and warm
            steps; "other" is what no phase claims. They add up to the step.
        overlapped: name -> mean seconds a step that passed beside those, as an exchange in a thread of its own.
        beside: name -> total seconds of what happens between steps, mean over ranks.
        scores: of the last evaluation.
        best: of each score, the best evaluation's.
        sent_bytes, dense_bytes: mean bytes a step, over all ranks.
        peak_memory_bytes: of the rank with the most.
        energy_j: joules that the run's nodes took in its steps; NaN where their machines do not say.
        plugins: what was plugged in: its distribution, version and digest.
        efficiencies: POP's, by name (see ``Efficiencies``); empty on one rank and where no waits are known.
        to_target: what reaching the target took (see ``Reached``); empty without one.
        labels: why the times do not speak for a machine, if they do not.
    """

    name: str
    path: str
    state: str
    outcome: str
    steps: int
    epoch: float
    elapsed_s: float
    ranks: int
    hosts: tuple[str, ...]
    restarts: int
    loss: float
    scores: dict[str, float]
    best: dict[str, float]
    step_s: float
    step_s_low: float
    step_s_high: float
    samples_per_s: float
    phases: dict[str, tuple[float, float]]
    overlapped: dict[str, float]
    beside: dict[str, float]
    sent_bytes: float
    dense_bytes: float
    peak_memory_bytes: float
    energy_j: float
    plugins: dict[str, str]
    efficiencies: dict[str, float]
    to_target: dict[str, Any]
    labels: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)


Runs = Sequence[tuple[Run, Summary]]


def summarise(run: Run, target: Target | None = None) -> Summary:
    """Reduce a run to its figures; those that it has no steps for are NaN. The target is by default the job's own."""
    target = target or target_of(run)
    warm = run.warm
    step_s = run.step_s[warm]
    low, median, high = np.percentile(step_s, (25, 50, 75)) if step_s.size else [np.nan] * 3
    state, outcome = _state(run)
    phases, overlapped = _phases(run, warm, step_s)
    pop = efficiencies(run, sum(seconds for seconds, _ in phases.values()))
    peaks = np.append(run.attributes.get("peak_memory_bytes", ()), np.nan)
    evaluations = run.evaluations
    last = {name: float(v[-1]) for name, v in evaluations.items() if name not in ("step", "time_s") and len(v)}
    return Summary(
        name=run.name,
        path=printable(str(run.path.parent)),
        state=state,
        outcome=outcome,
        steps=run.steps,
        epoch=_last(run, "epoch"),
        elapsed_s=float(run.attributes.get("elapsed_s", _last(run, "time_s"))),
        ranks=run.ranks,
        hosts=tuple(dict.fromkeys(run.attributes.get("hostnames", ()))),
        restarts=len(run.starts) - 1,
        loss=_last(run, "loss", known=outcome != "diverged"),
        scores=last,
        best={name: best_of(run, name) for name in last},
        step_s=float(median),
        step_s_low=float(low),
        step_s_high=float(high),
        samples_per_s=_samples(run) / float(median) if median > 0 else np.nan,
        phases=phases,
        overlapped=overlapped,
        beside={
            phase: float(run.phase_s[:, i].sum()) for i, phase in enumerate(run.phases) if phase in BESIDE_THE_STEP
        },
        sent_bytes=float(run.sent_bytes[warm].mean()) if step_s.size else np.nan,
        dense_bytes=float(run.dense_bytes[warm].mean()) if step_s.size else np.nan,
        peak_memory_bytes=float(np.fmax.reduce(peaks)),
        energy_j=_energy(run),
        plugins=plugins_of(run.attributes),
        efficiencies={} if pop is None else asdict(pop),
        to_target={} if target is None else asdict(reached(run, target)),
        labels=_labels(run),
    )


def best_of(run: Run, score: str) -> float:
    """A score's best evaluation, NaN if none is a number."""
    known = run.evaluations[score][~np.isnan(run.evaluations[score])]
    return float(known.min() if run.better[score] == "lower" else known.max()) if len(known) else np.nan


def notes_of(runs: Sequence[Run]) -> list[str]:
    """What the files do not say as a run would: which scores are better, attributes of other kinds."""
    guessed = sorted({f"{name}, the {run.better[name]} the better" for run in runs for name in run.guessed})
    odd = sorted({name for run in runs for name in run.odd})
    notes = [f"guessed from the names, as the file does not say: {'; '.join(guessed)}"] if guessed else []
    return notes + [f"attributes of another kind than a run writes, left out: {', '.join(odd)}"] * bool(odd)


def differing_settings(runs: list[Run]) -> dict[str, list[str]]:
    """Keys of the jobs, and the number of ranks, that are not the same in all runs, with each run's value. The jobs'
    names stand for several settings that go with them.
    """
    every = [{"ranks": str(run.ranks), **flat(run.config)} for run in runs]
    keys = dict.fromkeys(key for settings in every for key in settings)
    values = {key: [settings.get(key, "") for settings in every] for key in keys}
    differing = {key: each for key, each in values.items() if len(set(each)) > 1}
    named = differing.pop("run.name", None)
    if named is None:
        return differing
    told = {key: each for key, each in differing.items() if len(set(zip(named, each, strict=True))) == len(set(named))}
    if len(told) > 2 and len(set(named)) < len(runs):  # the jobs' names say it in one column
        differing = {"run.name": named, **{key: each for key, each in differing.items() if key not in told}}
    return differing


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """A job's settings with their sections' names before them: {"run": {"seed": 1}} is {"run.seed": "1"}."""
    settings: dict[str, str] = {}
    for key, value in config.items():
        settings |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: str(value)}
    return settings


def _state(run: Run) -> tuple[str, str]:
    """Whether the run is finished, to be continued, running, or silent; and what it said itself."""
    if "outcome" in run.attributes:
        finished = run.attributes.get("exit_code", 0) == 0
        return ("finished" if finished else "stopped"), str(run.attributes["outcome"])
    quiet_s = time.time() - run.modified_s
    if quiet_s < QUIET_S:
        return "running", f"last written {quiet_s:.0f} s ago"
    return "interrupted", f"nothing written for {quiet_s / 60:.0f} minutes"


def _last(run: Run, column: str, *, known: bool = False) -> float:
    """The last value, or the last that is known."""
    values = run.columns.get(column, np.zeros(0))
    values = values[~np.isnan(values)] if known else values
    return float(values[-1]) if len(values) else float("nan")


def _energy(run: Run) -> float:
    """Joules of all steps, unless those of one of its starts are not known."""
    taken = run.columns.get("energy_j")
    if taken is None or not len(taken):
        return np.nan
    start = np.searchsorted([start.step for start in run.starts], run.columns["step"], side="left")
    told = np.isin(start, start[~np.isnan(taken)]).all()  # of each start, one row at least
    joules = float(np.nansum(taken))
    return joules if told and np.isfinite(joules) else np.nan


def _samples(run: Run) -> float:
    """Training samples a step."""
    samples = run.columns.get("samples")
    if samples is None or not len(samples):
        return float("nan")
    return float(np.median(np.diff(samples, prepend=0)))


def _phases(run: Run, warm: np.ndarray, step_s: np.ndarray) -> tuple[dict[str, tuple[float, float]], dict[str, float]]:
    """The training thread's phases, and those that passed beside them."""
    if not step_s.size:
        return {}, {}
    whole = float(step_s.mean())
    seconds = {
        phase: mean
        for index, phase in enumerate(run.phases)
        if phase not in BESIDE_THE_STEP and (mean := float(run.phase_s[warm, index].mean())) > 0
    }
    overlapped = {p: s for p, s in seconds.items() if p in BESIDE_THE_THREAD and sum(seconds.values()) > whole}
    own = {phase: s for phase, s in seconds.items() if phase not in overlapped}
    own["other"] = max(0.0, whole - sum(own.values()))
    return {phase: (s, s / max(whole, sum(own.values()))) for phase, s in own.items() if s > 0}, overlapped


def _labels(run: Run) -> tuple[str, ...]:
    labels = []
    if run.attributes.get("oversubscribed"):
        labels.append("oversubscribed: more threads than cores, times do not show scaling")
    if (backend := run.config.get("run", {}).get("backend")) in ("loopback", "rehearsal"):
        labels.append(f"{backend}: ranks are threads of one process, times do not show scaling")
    return tuple(labels)
