"""A Chrome trace a rank, as torch's profiler (Kineto) writes them: steps as ``ProfilerStep#N``, phases as user
annotations under their names, and ``distributedInfo``, by which tools know which rank's it is.

metrics.h5 has the seconds of a phase in a step and not when it began: phases stand one behind the other, in the order
of the vocabulary, from the step's beginning; what an exchange did beside the training thread is a thread of its own.
"""

import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hpcopt.export.series import moments
from hpcopt.report.read import Run
from hpcopt.store import metrics, step_times, strict_json

STEPS_TID, PHASES_TID, BESIDE_TID = 0, 1, 2
THREADS = {STEPS_TID: "steps", PHASES_TID: "training thread", BESIDE_TID: "exchange, beside it"}


@dataclass(frozen=True)
class Block:
    """Steps of a run, rank by rank.

    Attributes:
        steps: (n,).
        begun_s: seconds since 1970 at which each began on rank 0, (n,).
        step_s: wall seconds, (n,).
        phase_s: (n, ranks, phases), NaN where a rank was absent.
    """

    steps: np.ndarray
    begun_s: np.ndarray
    step_s: np.ndarray
    phase_s: np.ndarray


def write(run: Run, folder: Path, last: int) -> int:
    """Write a file a rank, of the newest steps, in place of those that were there; give the number of files."""
    block = _read(run, last)
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.glob("rank*.json.gz"):
        file.unlink()
    for rank in range(block.phase_s.shape[1]):
        info = {"backend": str(run.config.get("run", {}).get("backend", "mpi")), "rank": rank, "world_size": run.ranks}
        events = [*_names(rank), *_events(run, block, rank)]
        document = {"schemaVersion": 1, "distributedInfo": info, "displayTimeUnit": "ms", "traceEvents": events}
        with gzip.open(folder / f"rank{rank:05}.json.gz", "wt", encoding="utf-8") as text:
            text.write(strict_json.dumps(document))
    return int(block.phase_s.shape[1])


def _read(run: Run, last: int) -> Block:
    def rows(file: h5py.File) -> Block:
        steps = file["steps"]
        part = slice(max(0, len(steps["step"]) - last), None)
        step, step_s = steps["step"][part], steps["step_s"][part]
        begun_s = moments(run, step, steps["time_s"][part]) - step_s
        return Block(step, begun_s, step_s, steps["phase_s"][part].astype(float))

    return metrics.read(run.path, rows)


def _names(rank: int) -> Iterator[dict[str, Any]]:
    yield {"ph": "M", "name": "process_name", "pid": rank, "tid": 0, "args": {"name": f"rank {rank}"}}
    for tid, name in THREADS.items():
        yield {"ph": "M", "name": "thread_name", "pid": rank, "tid": tid, "args": {"name": name}}


def _events(run: Run, block: Block, rank: int) -> Iterator[dict[str, Any]]:
    """Microseconds, as Chrome's are."""
    for step, begun_s, step_s, seconds in zip(
        block.steps.tolist(), block.begun_s, block.step_s, block.phase_s[:, rank], strict=True
    ):
        if np.isnan(seconds).all():
            continue
        yield _event(f"ProfilerStep#{step}", rank, STEPS_TID, begun_s, step_s, step)
        at_s = {PHASES_TID: begun_s, BESIDE_TID: begun_s}
        for phase, phase_s in zip(run.phases, np.nan_to_num(seconds), strict=True):
            if phase_s > 0:
                tid = BESIDE_TID if phase in step_times.BESIDE_THE_THREAD else PHASES_TID
                yield _event(phase, rank, tid, at_s[tid], phase_s, step)
                at_s[tid] += phase_s


def _event(name: str, rank: int, tid: int, begun_s: float, seconds: float, step: int) -> dict[str, Any]:
    times = {"ts": round(1e6 * begun_s, 3), "dur": round(1e6 * seconds, 3)}
    return {"ph": "X", "cat": "user_annotation", "name": name, "pid": rank, "tid": tid, **times, "args": {"step": step}}
