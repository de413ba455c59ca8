"""One run's metrics in memory, small enough for 128 ranks and 100,000 steps: numbers by rank and phase are reduced on
the way in.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hpcopt.report.attributes import clean, job_of, known
from hpcopt.store import hdf5, metrics, step_times

FILE = "metrics.h5"
NO_SCORES = ("step", "time_s")  # columns of the evaluations
LOWER = {"loss", "error", "perplexity", "ppl", "nll", "mae", "mse", "rmse", "mape", "bits", "bpc", "wer", "cer", "fid"}
BLOCK_VALUES = 1 << 22


@dataclass(frozen=True)
class Start:
    """One start of the run: the first, or a restart.

    Attributes:
        step: steps done before it.
        time_s: seconds of the run before it.
        ranks: that took part from here on.
        date: ISO 8601.
        reason: for starting.
    """

    step: int
    time_s: float
    ranks: int
    date: str
    reason: str


@dataclass(frozen=True)
class Run:
    """What a run measured; n steps, R ranks (the most that ever took part), F phases.

    Attributes:
        path: of the metrics file.
        attributes: of its root.
        config: the job.
        columns: by name, each (n,).
        phases: names of the phases.
        phase_s: mean over the ranks, (n, F), seconds.
        rank_s: seconds of a rank's training thread in its phases, largest over the ranks, (n,).
        rank_phase_s: mean over the warm steps, (R, F), seconds.
        wait_s: seconds that each rank waited for others, (n, R), float32.
        sent_bytes, dense_bytes: sums over the ranks, (n,).
        evaluations: by name, each (k,); `step`, `time_s` and the scores.
        better: of each score, whether "higher" or "lower" ones are better.
        guessed: scores of which the file does not say it, and their names had to.
        choices: by name, each (buckets,), of the newest start: what an exchange that chooses by itself chose, expected
            and measured; empty for others.
        starts: the first is the first start.
        odd: attributes of the file that are of another kind than a run writes, and are left out.
        modified_s: when the file was last written, seconds since 1970.
    """

    path: Path
    attributes: dict[str, Any]
    config: dict[str, Any]
    columns: dict[str, np.ndarray]
    phases: tuple[str, ...]
    phase_s: np.ndarray
    rank_s: np.ndarray
    rank_phase_s: np.ndarray
    wait_s: np.ndarray
    sent_bytes: np.ndarray
    dense_bytes: np.ndarray
    evaluations: dict[str, np.ndarray]
    better: dict[str, str] = field(default_factory=dict)
    guessed: tuple[str, ...] = ()
    choices: dict[str, np.ndarray] = field(default_factory=dict)
    starts: tuple[Start, ...] = field(default=())
    modified_s: float = 0.0
    odd: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The job's name."""
        return str(self.attributes.get("title", self.path.parent.name))

    @property
    def ranks(self) -> int:
        """Ranks of the newest start."""
        return int(self.attributes["ranks"])

    @property
    def steps(self) -> int:
        """Steps done."""
        return int(self.columns["step"][-1]) if len(self.columns["step"]) else 0

    @property
    def warm(self) -> np.ndarray:
        """Which rows count for timing, (n,), bool: not the first ten steps after a start, if there are more than
        twenty.
        """
        return step_times.warm(self.columns["step"], [start.step for start in self.starts])

    @property
    def step_s(self) -> np.ndarray:
        """Seconds of each training step, (n,): of its slowest rank, without evaluation and checkpoints beside it."""
        between_s = self.phase_s[:, step_times.between_steps(self.phases)].sum(1)
        return step_times.training_s(self.columns.get("step_s", np.zeros(len(self.rank_s))), between_s, self.rank_s)


def read_run(path: Path) -> Run:
    """Read a run, given its directory or its metrics.h5; it may still be running.

    Raises:
        MetricsError: there is none, or it is damaged.
    """
    file = path / FILE if path.is_dir() else path
    return metrics.read(file, lambda opened: _extract(opened, file))


def _extract(file: h5py.File, path: Path) -> Run:
    (attributes, odd), steps = known(hdf5.get_attributes(file)), file["steps"]
    columns = _columns(steps)
    phases = tuple(clean(name) for name in metrics.phases_of(steps))
    if steps["phase_s"].shape != (len(columns["step"]), len(steps["rank"]), len(phases)):
        raise ValueError(f"steps/phase_s is of shape {steps['phase_s'].shape}")
    evaluations = _columns(file["evaluations"])
    evaluations.setdefault("time_s", np.full(len(evaluations["step"]), np.nan))
    scores = [name for name in evaluations if name not in NO_SCORES]
    said = {name: hdf5.get_attributes(file["evaluations"][name]).get("better") for name in scores}
    said = {name: better for name, better in said.items() if better in ("higher", "lower")}
    return Run(
        path=path,
        attributes={"ranks": max(1, len(steps["rank"])), **attributes},
        config=job_of(attributes),
        columns=columns,
        phases=phases,
        **_reduce(steps, phases),
        evaluations={clean(name): values for name, values in evaluations.items()},
        better={clean(name): said.get(name) or guess_better(name) for name in scores},
        guessed=tuple(clean(name) for name in scores if name not in said),
        choices=_choices(file["choices"]) if "choices" in file else {},
        starts=tuple(_starts(file["starts"])),
        modified_s=path.stat().st_mtime,
        odd=odd,
    )


def _columns(group: h5py.Group) -> dict[str, np.ndarray]:
    """Numbers with a row a step, by name."""
    found = {
        name: hdf5.whole(dataset)
        for name, dataset in group.items()
        if name not in ("rank", "phase") and dataset.ndim == 1 and dataset.dtype.kind in "iuf"
    }
    for name, values in found.items():
        if len(values) != len(found["step"]):
            raise ValueError(f"{group.name}/{name} has {len(values)} rows and not {len(found['step'])}")
    return found


def guess_better(score: str) -> str:
    """Which scores of a name are likely better, for files that do not say."""
    words = set(re.split(r"[^a-z]+", score.lower()))
    return "lower" if words & LOWER else "higher"


def _choices(group: h5py.Group) -> dict[str, np.ndarray]:
    found = _columns(group)
    algorithm = group.get("algorithm")
    if algorithm is not None and h5py.check_string_dtype(algorithm.dtype) and algorithm.shape == found["step"].shape:
        found["algorithm"] = hdf5.whole(algorithm)
    newest = found["step"] == found["step"][-1:]
    return {name: values[newest] for name, values in found.items()}


def _starts(group: h5py.Group) -> list[Start]:
    names = ("step", "time_s", "ranks", "date_created", "reason")
    rows = zip(*(hdf5.whole(group[name]) for name in names), strict=True)
    return [
        Start(int(s), float(t), int(r), clean(date.decode()), clean(reason.decode())) for s, t, r, date, reason in rows
    ]


def _reduce(steps: h5py.Group, phases: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Read the tables with a value a rank in blocks of steps, keeping only what Run describes."""
    table = hdf5.filled(steps["phase_s"])
    n, ranks, count = table.shape
    inside = step_times.in_thread(phases)
    waiting = phases.index("exchange") if "exchange" in phases else None
    found = {
        "phase_s": np.zeros((n, count)),
        "rank_s": np.zeros(n),
        "wait_s": np.zeros((n, ranks), np.float32),
        "sent_bytes": np.zeros(n, np.int64),
        "dense_bytes": np.zeros(n, np.int64),
    }
    sums, seen = np.zeros((ranks, count)), np.zeros((ranks, 1))
    rows = max(1, BLOCK_VALUES // max(1, ranks * count))
    for first in range(0, n, rows):
        part = slice(first, first + rows)
        block = table[part]
        there = ~np.isnan(block[:, :, :1])
        block = np.nan_to_num(block, copy=False)
        found["phase_s"][part] = block.sum(1, dtype=np.float64) / np.maximum(there.sum(1), 1)
        found["rank_s"][part] = block[:, :, inside].sum(2).max(1, initial=0)
        if waiting is not None:
            found["wait_s"][part] = np.where(there[:, :, 0], block[:, :, waiting], np.nan)
        sums += block.sum(0, dtype=np.float64)
        seen += there.sum(0)
        for name in ("sent_bytes", "dense_bytes"):
            found[name][part] = np.maximum(hdf5.filled(steps[name])[part], 0).sum(1)
    return {**found, "rank_phase_s": sums / np.maximum(seen, 1)}
