"""metrics.h5: what a run measured, a row a step, readable while the run goes on and after it was killed.

    steps/          dimensions step, rank, phase
        step epoch time_s step_s loss learning_rate samples ...   (step,)   any further columns that a solver gives
        phase_s                                                   (step, rank, phase)   seconds
        sent_bytes dense_bytes                                    (step, rank)   sent, and what dense would have been
    evaluations/    step time_s and a column a score              (step,)
    starts/         step time_s ranks date_created reason attributes   (step,)   the first row is the first start
    choices/        step bucket bytes algorithm predicted_s measured_s ...   (step,)   if the exchange chose by itself
    any other       step and a column a number or text            (step,)   tables that a solver gives

The root's attributes say what ran where. One process writes, in blocks; every block is one change that takes effect as
a whole (hpcopt/store/journal.py). All columns of a group have the same length; what was not measured is NaN, or -1 in
whole numbers. docs/reference/format.md describes the file for other readers.
"""

import contextlib
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np

from hpcopt import __version__
from hpcopt.errors import HpcoptError, MetricsError
from hpcopt.store import hdf5, journal
from hpcopt.store.hung import touching
from hpcopt.store.room import unwritten
from hpcopt.store.tables import append, make_column, make_dimension, make_table, tables, truncate

T = TypeVar("T")

SCHEMA_VERSION = 2  # 1: names of phases in bytes of fixed length, and choices the only table of its kind
READABLE = (1, 2)
BLOCK_ROWS = 512
OWN_TABLES = ("steps", "evaluations", "starts")
BY_RANK = ("phase_s", "sent_bytes", "dense_bytes")
ENVIRONMENT = ("SLURM_", "OMP_", "NCCL_", "OMPI_MCA_", "UCX_", "MPIR_CVAR_", "FI_", "CUDA_VISIBLE_DEVICES", "HOROVOD_")
REMEDY = "move it away, and the job goes on from its newest checkpoint; log.txt still tells of the steps before"


class MetricsFile:
    """The metrics of one run; its methods are for one process only, rank 0.

    A method returns when its rows are on disk. Killed before, the file is as it was.
    """

    def __init__(self, path: Path, require_ours: Callable[[], None] = lambda: None) -> None:
        """Of the file at ``path``; ``require_ours`` raises if another job has taken over the run directory."""
        self.path, self._require_ours = Path(path), require_ours
        self._phases: Sequence[str] | None = None  # of what is appended; None: as in the file

    def create(
        self,
        ranks: int,
        phases: Sequence[str],
        attributes: Mapping[str, Any],
        *,
        step: int = 0,
        time_s: float = 0.0,
    ) -> None:
        """Start the file anew, replacing one that is there.

        Args:
            ranks: number of ranks.
            phases: names along the last dimension of the phase_s that are given.
            attributes: of the root; see software().
            step, time_s: steps done and seconds taken before, which the file knows nothing of.

        Raises:
            MetricsError: the file cannot be written.
        """
        with self._writing(), hdf5.create(self.path) as file:
            journal.journal_of(self.path).unlink(missing_ok=True)
            known = {"Conventions": hdf5.CONVENTIONS, "schema_version": SCHEMA_VERSION, "ranks": ranks}
            hdf5.set_attributes(file, {**known, **attributes})
            steps = file.create_group("steps")
            make_column(steps, "step", np.int64)
            make_dimension(steps, "phase", list(phases), h5py.string_dtype())
            rank = make_dimension(steps, "rank", np.arange(ranks), np.int64, maxshape=(None,), chunks=(1024,))
            hdf5.set_attributes(rank, {"units": "1", "long_name": "MPI rank"})
            make_table(steps, "phase_s", np.float32, ("step", "rank", "phase"), "s")
            make_table(steps, "sent_bytes", np.int64, ("step", "rank"), "byte")
            make_table(steps, "dense_bytes", np.int64, ("step", "rank"), "byte")
            for name in ("evaluations", "starts"):
                make_column(file.create_group(name), "step", np.int64)
            reason = "resumed, without the metrics of before" if step else "first start"
            _start(file, step, ranks, attributes, reason, time_s)
        self._phases = phases

    def append_steps(
        self, columns: Mapping[str, np.ndarray], phase_s: np.ndarray, sent_bytes: np.ndarray, dense_bytes: np.ndarray
    ) -> None:
        """Add k steps.

        Args:
            columns: scalars by name, each (k,): `step`, rising, and any others.
            phase_s: seconds, (k, ranks, phases), the phases as ``create`` or ``restart`` were told.
            sent_bytes: (k, ranks).
            dense_bytes: (k, ranks).
        """
        with self._changing() as file:
            steps = file["steps"]
            append(steps, columns)
            all_s = np.full((*phase_s.shape[:2], len(steps["phase"])), np.nan, np.float32)
            all_s[:, :, phase_numbers(steps, self._phases)] = phase_s
            for name, block in zip(BY_RANK, (all_s, sent_bytes, dense_bytes), strict=True):
                steps[name][len(steps["step"]) - len(block) :, : block.shape[1]] = block

    def append_evaluation(
        self, step: int, time_s: float, scores: Mapping[str, float], better: Mapping[str, str] | None = None
    ) -> None:
        """Add the scores after a step, and note of each whether "higher" or "lower" ones are better."""
        row = {"step": step, "time_s": time_s, **scores}
        with self._changing() as file:
            group = file["evaluations"]
            append(group, {name: np.array([value]) for name, value in row.items()})
            for name, direction in (better or {}).items():
                if name in scores and group[name].attrs.get("better") != direction:
                    hdf5.set_attributes(group[name], {"better": direction})

    def put_table(
        self,
        name: str,
        steps: Sequence[int] | np.ndarray,
        columns: Mapping[str, Any],
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        """Write rows of a table, in place of its rows of the first of these steps and later.

        Args:
            name: of the table; it is made if it is not there.
            steps: that the rows belong to, (k,), not falling.
            columns: numbers or texts by name, each (k,).
            attributes: of the table.

        Raises:
            ValueError: the table or a column cannot be called that, or is not as long as ``steps``.
        """
        if name in OWN_TABLES or "/" in name or name in ("", "."):
            raise ValueError(f"a table cannot be called {name!r}: the name stands for something else")
        if len(steps) == 0:
            return
        with self._changing() as file:
            group = file.require_group(name)
            if "step" not in group:
                make_column(group, "step", np.int64)
            truncate(group, int(np.searchsorted(hdf5.whole(group["step"]), steps[0], side="left")))
            append(group, {**columns, "step": np.asarray(steps)})
            hdf5.set_attributes(group, attributes or {})

    def restart(
        self,
        step: int,
        ranks: int,
        attributes: Mapping[str, Any],
        reason: str = "resumed",
        *,
        phases: Sequence[str] | None = None,
        of_start: Mapping[str, Any] | None = None,
    ) -> None:
        """Continue from a checkpoint of `step`: drop all that was measured after it, and note the new start.

        The rank dimension grows if there are more ranks than ever before; where there are fewer, the others' values are
        NaN, or -1 bytes. So does the phase dimension if phases come that there were not, in a rewritten phase_s.

        Args:
            phases: names along the last dimension of the phase_s that are given from here on; by default the file's.
            of_start: attributes of this start alone.

        Raises:
            MetricsError: the file is damaged, of another schema or no metrics file, or cannot be written.
        """
        with self._writing():
            journal.recover(self.path)
        read(self.path, _require_tables)
        try:
            with self._changing() as file:
                _drop_after(file, step)
                _make_room(file["steps"], ranks)
                if phases is not None and _add_phases(file["steps"], phases):
                    file.attrs["schema_version"] = SCHEMA_VERSION
                _start(file, step, ranks, {**attributes, **(of_start or {})}, reason)
                for name in ("outcome", "exit_code", "date_finished", "elapsed_s"):
                    file.attrs.pop(name, None)
                created = file.attrs.get("date_created")
                hdf5.set_attributes(file, {**attributes, "ranks": ranks, "date_created": created})
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as cause:  # tables of another kind
            raise MetricsError(f"{self.path} is damaged or not a metrics file ({cause}): {REMEDY}") from cause
        self._phases = phases

    def finish(
        self,
        outcome: str,
        exit_code: int,
        peak_memory_bytes: np.ndarray | None = None,
        elapsed_s: float | None = None,
        device_peak_memory_bytes: np.ndarray | None = None,
    ) -> None:
        """Note that the run has ended, and why, the most memory that each rank used, (ranks,), also of its GPU, and the
        seconds that all of the run took.
        """
        self.catch_up()
        end = {"outcome": outcome, "exit_code": exit_code, "date_finished": _now(), "elapsed_s": elapsed_s}
        with self._changing() as file:
            peaks = {"peak_memory_bytes": peak_memory_bytes, "device_peak_memory_bytes": device_peak_memory_bytes}
            hdf5.set_attributes(file, {**end, **peaks})

    def catch_up(self) -> None:
        """Write what waits to be written: here, nothing does.

        Raises:
            MetricsError: it still cannot be written.
        """

    @contextlib.contextmanager
    def _changing(self) -> Iterator[h5py.File]:
        with self._writing(), journal.changing(self.path) as file:
            yield file

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        self._require_ours()
        try:
            with touching(self.path):
                yield
        except (OSError, RuntimeError) as cause:  # HDF5 reports a full disk as either
            raise MetricsError(unwritten(self.path, cause, getattr(cause, "needed_bytes", None))) from cause


def read(path: Path, extract: Callable[[h5py.File], T]) -> T:
    """Apply a function to the file's content of one moment, also while the run writes or after it was killed.

    Args:
        path: a metrics.h5.
        extract: called with the open file, possibly several times; what it gives must not refer to the file.

    Raises:
        MetricsError: the file is missing, damaged, or of another schema.
    """
    for attempt in range(10):
        before = None
        try:
            before = journal.moment(path)
            with journal.viewing(path) as file:
                if (version := int(file.attrs["schema_version"])) not in READABLE:
                    known = " and ".join(map(str, READABLE))
                    raise MetricsError(f"{path} is of schema {version}, this hpcopt reads {known}: {REMEDY}")
                result = extract(file)
            if journal.moment(path) == before:
                return result
        except FileNotFoundError as cause:
            raise MetricsError(f"{path} is missing: is it the run directory of a job that has started?") from cause
        except HpcoptError:
            raise
        except Exception as cause:  # HDF5 reports damage as any of a dozen classes
            if before is None or journal.moment(path) == before:
                raise MetricsError(f"{path} is damaged or not a metrics file ({cause}): {REMEDY}") from cause
        time.sleep(0.02 * attempt)
    raise MetricsError(f"{path} changes faster than it can be read: try again")


def software() -> dict[str, Any]:
    """Root attributes that any process can tell: version, command, date, commit, SLURM job, environment."""
    environment = {name: value for name, value in sorted(os.environ.items()) if name.startswith(ENVIRONMENT)}
    commit, dirty = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--untracked-files=no")
    return {
        "hpcopt_version": __version__,
        "date_created": _now(),
        "history": f"{_now()}: {shlex.join(sys.orig_argv)}",
        "command_line": shlex.join(sys.orig_argv),
        "environment": json.dumps(environment),
        "git_sha": commit,
        "git_dirty": None if commit is None else int(bool(dirty)),
        "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
    }


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def phases_of(steps: h5py.Group) -> list[str]:
    """Names of the phases."""
    return [name.decode() for name in hdf5.whole(steps["phase"])]


def phase_numbers(steps: h5py.Group, phases: Sequence[str] | None) -> list[int] | slice:
    """Where phases stand along the last dimension of phase_s."""
    known = phases_of(steps)
    return slice(None) if phases is None else [known.index(phase) for phase in phases]


def _add_phases(steps: h5py.Group, phases: Sequence[str]) -> bool:
    """Make the phase dimension hold all of these; whether any was missing."""
    known = phases_of(steps)
    every = list(dict.fromkeys([*known, *phases]))
    if every == known:
        return False
    for dim, name in zip(steps["phase_s"].dims, ("step", "rank", "phase"), strict=True):
        dim.detach_scale(steps[name])
    steps.move("phase_s", "before")
    del steps["phase"]
    make_dimension(steps, "phase", every, h5py.string_dtype())
    before = steps["before"]
    make_table(steps, "phase_s", np.float32, ("step", "rank", "phase"), "s")
    for first in range(0, len(before), BLOCK_ROWS):
        rows = slice(first, first + BLOCK_ROWS)
        steps["phase_s"][rows, :, : len(known)] = before[rows]
    del steps["before"]
    return True


def _drop_after(file: h5py.File, step: int) -> None:
    """Drop what was measured after a step."""
    for group in (item for name, item in file.items() if name != "starts" and isinstance(item, h5py.Group)):
        truncate(group, int(np.searchsorted(hdf5.whole(group["step"]), step, side="right")))


def _make_room(steps: h5py.Group, ranks: int) -> None:
    """Make the rank dimension no shorter than that."""
    known = len(steps["rank"])
    if ranks > known:
        steps["rank"].resize(ranks, axis=0)
        steps["rank"][known:] = np.arange(known, ranks)
        for name in BY_RANK:
            steps[name].resize(ranks, axis=1)


def _start(
    file: h5py.File, step: int, ranks: int, attributes: Mapping[str, Any], reason: str, time_s: float = 0.0
) -> None:
    """Note a start in the table of starts, with all its attributes."""
    steps, starts = file["steps"], file["starts"]
    times = steps["time_s"][-1:] if "time_s" in steps else np.zeros(0)
    described = {name: value for name, value in attributes.items() if value is not None}
    row = {"step": step, "ranks": ranks, "time_s": times[0] if len(times) else time_s}
    row |= {"date_created": _now(), "reason": reason, "attributes": json.dumps(described, default=np.ndarray.tolist)}
    append(starts, {name: [value] for name, value in row.items()})


def _require_tables(file: h5py.File) -> None:
    """Raise ValueError unless all tables that a run goes on to fill are there, each with a row a step."""
    for name in ("steps", "evaluations", "starts"):
        group = file[name]
        if not isinstance(group, h5py.Group) or group["step"].dtype.kind != "i" or group["step"].ndim != 1:
            raise ValueError(f"{name} is no table of steps")
        if group["step"].id.get_storage_size() < group["step"].nbytes:  # fill values may stand for gigabytes
            raise ValueError(f"{name}/step has fewer values than rows")
        for column, dataset in tables(group):
            if not isinstance(dataset, h5py.Dataset) or dataset.ndim < 1 or dataset.maxshape[0] is not None:
                raise ValueError(f"{name}/{column} is no column that grows")
    for name in BY_RANK:
        if file["steps"][name].ndim < 2 or len(file["steps"]["rank"]) != file["steps"][name].shape[1]:
            raise ValueError(f"steps/{name} does not fit the ranks")
