"""metrics.h5: what a run measured, a row a step, readable while the run goes on and after it was killed.

    steps/          dimensions step, rank, phase
        step epoch time_s step_s loss learning_rate samples ...   (step,)   any further columns that a solver gives
        phase_s                                                   (step, rank, phase)   seconds
        sent_bytes dense_bytes                                    (step, rank)   sent, and what dense would have been
    evaluations/    step time_s and a column a score              (step,)
    starts/         step time_s ranks date_created reason attributes   (step,)   the first row is the first start
    choices/        step bucket bytes algorithm predicted_s measured_s ...   (step,)   if the exchange chose by itself

The root's attributes say what ran where. One process writes, in blocks; every block is one change that takes effect as
a whole (hpcopt/store/journal.py). All columns of a group have the same length; what was not measured is NaN, or -1 in
whole numbers. docs/format.md describes the file for other readers.
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

T = TypeVar("T")

SCHEMA_VERSION = 1
CHUNK_BYTES, CHUNK_ROWS = 1 << 18, 512
ENVIRONMENT = ("SLURM_", "OMP_", "NCCL_", "OMPI_MCA_", "UCX_", "MPIR_CVAR_", "FI_", "CUDA_VISIBLE_DEVICES", "HOROVOD_")
REMEDY = "move it away, and the job goes on from its newest checkpoint; log.txt still tells of the steps before"
DIMENSIONS = ("rank", "phase")  # beside step, which is a column too
INTEGERS = ("step", "samples", "ranks", "bucket", "bytes", "steps")
UNITS = {"step": "1", "epoch": "1", "time_s": "s", "step_s": "s", "samples": "1", "ranks": "1", "bytes": "byte"}
MEANINGS = {
    "step": "number of steps done",
    "epoch": "passes over the training data done",
    "time_s": "wall time since the run began, without the gaps between restarts",
    "step_s": "wall time of the step on rank 0",
    "loss": "mean loss over the global batch",
    "learning_rate": "learning rate of the step",
    "samples": "training samples used since the run began",
    "ranks": "number of ranks",
    "phase_s": "wall time of each phase of the step on each rank",
    "sent_bytes": "bytes that each rank sent in the step",
    "dense_bytes": "bytes that uncompressed collectives would have sent",
    "bytes": "bytes of the bucket's values",
    "algorithm": "collective that the bucket takes",
    "predicted_s": "time of the bucket's collective as the calibration has it",
    "measured_s": "time of the bucket's collective, mean over the steps of the shortest of the ranks",
    "steps": "steps that were measured",
}


class MetricsFile:
    """The metrics of one run; its methods are for one process only, rank 0.

    A method returns when its rows are on disk. Killed before, the file is as it was.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

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
            phases: names along the last dimension of phase_s.
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
            _column(steps, "step", np.int64)
            steps.create_dataset("phase", data=np.array([p.encode() for p in phases]))
            rank = steps.create_dataset("rank", data=np.arange(ranks), maxshape=(None,), chunks=(1024,))
            hdf5.set_attributes(rank, {"units": "1", "long_name": "MPI rank"})
            for name in ("phase", "rank"):
                steps[name].make_scale(name)
            _table(steps, "phase_s", np.float32, ("step", "rank", "phase"), "s")
            _table(steps, "sent_bytes", np.int64, ("step", "rank"), "byte")
            _table(steps, "dense_bytes", np.int64, ("step", "rank"), "byte")
            for name in ("evaluations", "starts"):
                _column(file.create_group(name), "step", np.int64)
            reason = "resumed, without the metrics of before" if step else "first start"
            _start(file, step, ranks, attributes, reason, time_s)

    def append_steps(
        self, columns: Mapping[str, np.ndarray], phase_s: np.ndarray, sent_bytes: np.ndarray, dense_bytes: np.ndarray
    ) -> None:
        """Add k steps.

        Args:
            columns: scalars by name, each (k,): `step`, rising, and any others.
            phase_s: seconds, (k, ranks, phases).
            sent_bytes: (k, ranks).
            dense_bytes: (k, ranks).
        """
        with self._changing() as file:
            steps = file["steps"]
            _append(steps, columns)
            for name, block in (("phase_s", phase_s), ("sent_bytes", sent_bytes), ("dense_bytes", dense_bytes)):
                steps[name][len(steps["step"]) - len(block) :, : block.shape[1]] = block

    def append_evaluation(
        self, step: int, time_s: float, scores: Mapping[str, float], better: Mapping[str, str] | None = None
    ) -> None:
        """Add the scores after a step, and note of each whether "higher" or "lower" ones are better."""
        row = {"step": step, "time_s": time_s, **scores}
        with self._changing() as file:
            group = file["evaluations"]
            _append(group, {name: np.array([value]) for name, value in row.items()})
            for name, direction in (better or {}).items():
                if name in scores and group[name].attrs.get("better") != direction:
                    hdf5.set_attributes(group[name], {"better": direction})

    def put_choices(
        self, step: int, algorithms: Sequence[str], columns: Mapping[str, np.ndarray], calibration: str
    ) -> None:
        """Write what the exchange chose at the start at ``step``, in place of what was known of that start before.

        Args:
            step: number of the step that the start continued from.
            algorithms: of every bucket, (k,).
            columns: scalars by name, each (k,).
            calibration: what the choice rests on, as JSON.
        """
        with self._changing() as file:
            group = file.require_group("choices")
            if "step" not in group:
                _column(group, "step", np.int64)
                _column(group, "algorithm", h5py.string_dtype())
            before = int(np.searchsorted(group["step"][:], step, side="left"))
            for _, dataset in _tables(group):
                dataset.resize(before, axis=0)
            _append(group, {"step": np.full(len(algorithms), step), **columns})
            group["algorithm"][before:] = list(algorithms)
            hdf5.set_attributes(group, {"calibration": calibration})

    def restart(self, step: int, ranks: int, attributes: Mapping[str, Any], reason: str = "resumed") -> None:
        """Continue from a checkpoint of `step`: drop all that was measured after it, and note the new start.

        The rank dimension grows if there are more ranks than ever before; where there are fewer, the others' values are
        NaN, or -1 bytes.

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
                _start(file, step, ranks, attributes, reason)
                for name in ("outcome", "exit_code", "date_finished"):
                    file.attrs.pop(name, None)
                created = file.attrs.get("date_created")
                hdf5.set_attributes(file, {**attributes, "ranks": ranks, "date_created": created})
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as cause:  # tables of another kind
            raise MetricsError(f"{self.path} is damaged or not a metrics file ({cause}): {REMEDY}") from cause

    def finish(self, outcome: str, exit_code: int, peak_memory_bytes: np.ndarray | None = None) -> None:
        """Note that the run has ended, and why, and the most memory that each rank used, (ranks,)."""
        end = {"outcome": outcome, "exit_code": exit_code, "date_finished": _now()}
        with self._changing() as file:
            hdf5.set_attributes(file, {**end, "peak_memory_bytes": peak_memory_bytes})

    @contextlib.contextmanager
    def _changing(self) -> Iterator[h5py.File]:
        with self._writing(), journal.changing(self.path) as file:
            yield file

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError) as cause:  # HDF5 reports a full disk as either
            raise MetricsError(
                f"cannot write {self.path} ({getattr(cause, 'strerror', None) or cause}): is the disk full? "
                "Make room and start the same command again: it goes on from the newest checkpoint"
            ) from cause


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
                if (version := int(file.attrs["schema_version"])) != SCHEMA_VERSION:
                    raise MetricsError(f"{path} is of schema {version}, this hpcopt reads {SCHEMA_VERSION}: {REMEDY}")
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


def _drop_after(file: h5py.File, step: int) -> None:
    """Drop what was measured after a step."""
    for group in (file[name] for name in ("steps", "evaluations", "choices") if name in file):
        rows = int(np.searchsorted(group["step"][:], step, side="right"))
        for _, dataset in _tables(group):
            dataset.resize(rows, axis=0)


def _make_room(steps: h5py.Group, ranks: int) -> None:
    """Make the rank dimension no shorter than that."""
    known = len(steps["rank"])
    if ranks > known:
        steps["rank"].resize(ranks, axis=0)
        steps["rank"][known:] = np.arange(known, ranks)
        for name in ("phase_s", "sent_bytes", "dense_bytes"):
            steps[name].resize(ranks, axis=1)


def _start(
    file: h5py.File, step: int, ranks: int, attributes: Mapping[str, Any], reason: str, time_s: float = 0.0
) -> None:
    """Note a start in the table of starts, with all its attributes."""
    steps, starts = file["steps"], file["starts"]
    times = steps["time_s"][-1:] if "time_s" in steps else np.zeros(0)
    _append(starts, {"step": np.array([step]), "ranks": np.array([ranks]), "time_s": times if len(times) else [time_s]})
    described = {name: value for name, value in attributes.items() if value is not None}
    texts = {"date_created": _now(), "reason": reason, "attributes": json.dumps(described, default=np.ndarray.tolist)}
    for name, text in texts.items():
        if name not in starts:
            _column(starts, name, h5py.string_dtype())
        starts[name].resize(len(starts["step"]), axis=0)
        starts[name][-1] = text


def _require_tables(file: h5py.File) -> None:
    """Raise ValueError unless all tables that a run goes on to fill are there, each with a row a step."""
    for name in ("steps", "evaluations", "starts"):
        group = file[name]
        if not isinstance(group, h5py.Group) or group["step"].dtype.kind != "i" or group["step"].ndim != 1:
            raise ValueError(f"{name} is no table of steps")
        if group["step"].id.get_storage_size() < group["step"].nbytes:  # fill values may stand for gigabytes
            raise ValueError(f"{name}/step has fewer values than rows")
        for column, dataset in _tables(group):
            if not isinstance(dataset, h5py.Dataset) or dataset.ndim < 1 or dataset.maxshape[0] is not None:
                raise ValueError(f"{name}/{column} is no column that grows")
    for name in ("phase_s", "sent_bytes", "dense_bytes"):
        if file["steps"][name].ndim < 2 or len(file["steps"]["rank"]) != file["steps"][name].shape[1]:
            raise ValueError(f"steps/{name} does not fit the ranks")


def _append(group: h5py.Group, columns: Mapping[str, Any]) -> None:
    """Lengthen all tables of a group by the rows of columns; new columns are made, missing ones stay without values."""
    before, count = len(group["step"]), len(columns["step"])
    for name in columns:
        if "/" in name or name in ("", ".", *DIMENSIONS):
            raise ValueError(
                f"a column of {group.name} cannot be called {name!r}: HDF5 would take it for something else"
            )
        if name not in group:
            _column(group, name, np.int64 if name in INTEGERS else np.float64)
    selected = h5py.h5s.create_simple((before + count,), (h5py.h5s.UNLIMITED,))
    selected.select_hyperslab((before,), (count,))
    memory = h5py.h5s.create_simple((count,))
    for name, dataset in _tables(group):
        dataset.id.set_extent((before + count, *dataset.shape[1:]))
        if name in columns:  # as dataset[before:] = values, but five times as fast, which hundreds of columns need
            dataset.id.write(memory, selected, np.ascontiguousarray(columns[name], dataset.dtype))


def _tables(group: h5py.Group) -> list[tuple[str, h5py.Dataset]]:
    """The datasets with a row a step."""
    return [(name, dataset) for name, dataset in group.items() if name not in DIMENSIONS]


def _column(group: h5py.Group, name: str, dtype: Any) -> None:
    """Make an empty column with a row a step; `step` itself becomes the dimension of the others."""
    _table(group, name, dtype, ("step",), _units(name))
    if name == "step":
        group[name].make_scale("step")


def _units(name: str) -> str:
    return UNITS.get(name, "s" if name.endswith("_s") else "1")


def _table(group: h5py.Group, name: str, dtype: Any, dims: Sequence[str], units: str) -> None:
    """Make an empty table, as long as the group's others, that grows along all its dimensions but phase."""
    known = group.get("step")
    rows = 0 if known is None else len(known)
    shape = (rows, *(len(group[dim]) for dim in dims[1:]))
    item = np.dtype(dtype).itemsize * int(np.prod(shape[1:]))
    chunk_rows = max(1, min(CHUNK_ROWS, CHUNK_BYTES // max(1, item)))
    text = h5py.check_string_dtype(np.dtype(dtype)) is not None
    dataset = group.create_dataset(
        name,
        shape,
        dtype,
        maxshape=tuple(len(group[dim]) if dim == "phase" else None for dim in dims) if dims != ("step",) else (None,),
        chunks=(chunk_rows, *(max(1, length) for length in shape[1:])),
        fillvalue=None if text else -1 if np.dtype(dtype).kind == "i" else np.nan,
        fletcher32=not text,
    )
    hdf5.set_attributes(dataset, {"units": units, "long_name": MEANINGS.get(name, name.replace("_", " "))})
    for dim, label in zip(dataset.dims, dims, strict=True):
        dim.label = label
        if label != name:
            dim.attach_scale(group[label])
