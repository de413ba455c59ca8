"""The [run] section: how long, how often, where to, and the run directory that it all goes into."""

import math
import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from hpcopt.comm.device import DeviceChoice
from hpcopt.comm.gpu_aware import GpuAware
from hpcopt.comm.virtual import VirtualRanks
from hpcopt.comm.world import Backend, World
from hpcopt.config import Config
from hpcopt.errors import JobError
from hpcopt.seeds import EVERY_RANK, derive
from hpcopt.shapes.workload import Better
from hpcopt.store.files import NotPlainError, open_to_append, replace_text, require_plain, unused
from hpcopt.store.journal import journal_of
from hpcopt.store.lock import RunLock

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds(text: str | float) -> float:
    """Read a duration: seconds as a number, "90s", "1h30m", or SLURM's "1-02:00:00", "1:30:00", "30:00"."""
    if isinstance(text, int | float):
        return float(max(-1e300, min(text, 1e300)))  # a larger integer would be no float
    if not isinstance(text, str):
        raise ValueError(f"not a duration: {text!r}")
    if re.fullmatch(r"(\d+[smhd])+", text):
        return float(sum(int(n) * _UNITS_S[unit] for n, unit in re.findall(r"(\d+)([smhd])", text)))
    if match := re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text):
        days, hours, minutes, rest = (int(group or 0) for group in match.groups())
        return float(86400 * days + 3600 * hours + 60 * minutes + rest)
    raise ValueError(f'not a duration: {text!r}; write 5400, "90m", "1h30m" or "1:30:00"')


class StopAt(Config):
    """A target that ends the run early."""

    metric: str = Field(description="name of a score, as evaluations print it")
    value: float = Field(description="the score to reach")
    better: Better | None = Field(
        None, description='"lower" or "higher": which scores are better; by default as the workload says'
    )

    def reached(self, scores: Mapping[str, float], better: Mapping[str, Better]) -> bool:
        """Whether the score is there, and as good as the value or better. ``better`` is the workload's word."""
        score, direction = scores.get(self.metric, math.nan), self.better or better.get(self.metric)
        return score <= self.value if direction == "lower" else score >= self.value


class RunConfig(Config):
    """How a job runs."""

    name: str = Field(
        "run", pattern=r"^[\w+-][\w.+-]*$", description="names the run directory, runs/NAME, unless --run-dir does"
    )
    backend: Backend = Field(
        "mpi",
        description="what carries collectives: mpi4py, Horovod (collectives, no messages), or NCCL between GPUs, with "
        "mpi4py for all else",
    )
    device: DeviceChoice = Field(
        "auto",
        description="what ranks compute on; auto: a GPU where one is visible, that of the local rank if several are",
    )
    gpu_aware_mpi: GpuAware = Field(
        "auto",
        description="give MPI tensors where they lie on a GPU; auto: if a trial in another process shows that it takes "
        "them; yes: without a trial; no: by way of main memory",
    )
    seed: int = Field(0, ge=0, description="decides initial parameters and the order of samples")
    steps: int | None = Field(None, ge=1, description="optimizer steps; with epochs, whichever is less")
    epochs: float | None = Field(
        None, gt=0, description="passes over the training samples; with steps, whichever is less"
    )
    evaluate_every: int | None = Field(None, ge=1, description="steps between evaluations; by default one epoch")
    checkpoint_every: int | None = Field(
        None, ge=1, description="steps between checkpoints; by default as many as checkpoint_share says"
    )
    checkpoint_share: float = Field(
        0.02,
        gt=0,
        le=1,
        description="part of the run's time that checkpoints may take, the first after 5 s; not with checkpoint_every",
    )
    checkpoint_in_background: bool = Field(
        True, description="go on training while a checkpoint is written; needs memory for a copy of the state"
    )
    checkpoint_one_file: bool = Field(
        False,
        description="all ranks write one file, over MPI-IO, while training waits; takes an h5py built with MPI",
    )
    keep_checkpoints: int = Field(2, ge=1, description="newest checkpoints to keep")
    stop_at: StopAt | None = Field(None, description="a score that ends the run early")
    time_budget: Annotated[float, BeforeValidator(seconds)] | None = Field(
        None, gt=0, description='wall seconds, or "1h30m": checkpoint and leave with exit code 85 before they are over'
    )
    requeue_signal: Literal["USR1", "USR2"] = Field(
        "USR1", description="signal, beside TERM, on which all ranks checkpoint and leave with exit code 85"
    )
    storage_failure: Literal["stop", "go_on"] = Field(
        "stop",
        description="where a checkpoint or metrics cannot be written, as on a full disk: stop ends the job with exit "
        "code 2; go_on trains on, keeps the last good checkpoint, and rows in memory, and tries again at the next",
    )
    storage_wait_s: float = Field(
        900.0,
        gt=0,
        description="seconds that the file system may not answer before the job ends with exit code 70; after stall_s "
        "the file is named",
    )
    reproducible: Literal["any ranks"] | None = Field(
        None,
        description="any ranks: the same bits, of losses, parameters and scores, on any number of ranks and across "
        "changes of it, on one kind of machine",
    )
    virtual_ranks: int = Field(
        8,
        ge=1,
        description="with reproducible: parts of a batch that are dealt out to the ranks, at most so many; each takes "
        "a forward and backward pass",
    )
    threads: int | None = Field(
        None, ge=1, description="torch threads of a rank; by default its share of the cores, 1 with reproducible"
    )
    log_every_s: float = Field(10.0, gt=0, description="seconds between progress lines in the log")
    stall_s: float = Field(
        60.0, gt=0, description="seconds that a collective may wait before the ranks missing from it are named"
    )
    elastic: bool = Field(
        False, description="go on without ranks that are lost, from copies in memory, and let them come back"
    )
    min_ranks: int = Field(
        1, ge=1, description="with elastic: with fewer ranks, checkpoint and leave with exit code 85"
    )
    copy_every: int = Field(50, ge=1, description="with elastic: steps between copies of the state in memory")
    buddies: int = Field(
        1,
        ge=1,
        description="with elastic: ranks that keep a copy of another's own state; so many may be lost at once",
    )
    rejoin_s: float = Field(
        0.5, ge=0, description="with elastic: seconds that the others wait for a rank that died to come back"
    )
    membership: Path | None = Field(
        None, description="with elastic: a run, or its metrics.h5, whose numbers of ranks step by step are used again"
    )
    debug: bool = Field(
        False, description="compare what the ranks are about to do before each collective, and their parameters"
    )

    @model_validator(mode="after")
    def _elastic_by_itself(self) -> Self:
        if self.elastic and self.backend != "mpi":
            raise ValueError(f'elastic ranks exchange messages by TCP: leave backend = "{self.backend}" out')
        if self.elastic and self.checkpoint_one_file:
            raise ValueError("elastic ranks have no MPI-IO: leave checkpoint_one_file out")
        if self.membership is not None and not self.elastic:
            raise ValueError("membership is for elastic = true")
        return self

    @model_validator(mode="after")
    def _has_a_length(self) -> "RunConfig":
        if self.steps is None and self.epochs is None:
            raise ValueError("give steps or epochs")
        return self

    @model_validator(mode="after")
    def _reproduces_what_it_can(self) -> "RunConfig":
        if self.reproducible is None:
            return self
        if self.backend != "mpi":
            raise ValueError(f'reproducible = "any ranks" takes backend = "mpi", not "{self.backend}"')
        if self.device not in ("auto", "cpu"):
            raise ValueError(
                'reproducible = "any ranks" computes on CPUs: leave device out; kernels of a GPU may add in any order'
            )
        return self

    def virtual(self, world: World) -> VirtualRanks | None:
        """The virtual ranks of this rank; None, if a job is made of ranks alone.

        Raises:
            JobError: on all ranks: there are more ranks than virtual ones.
        """
        if self.reproducible is None:
            return None
        return VirtualRanks(self.virtual_ranks, world.rank, world.size, derive(self.seed, 0, EVERY_RANK, "virtual"))

    def total_steps(self, steps_per_epoch: int | None) -> int:
        """Optimizer steps of the whole run.

        Raises:
            JobError: on all ranks: it is given in epochs, and nobody knows how long one is.
        """
        if self.epochs is not None and steps_per_epoch is None:
            raise JobError(
                "[run] epochs: nobody knows how long a pass over the training data is, which are a stream: give steps"
            ).everywhere()
        by_steps = math.inf if self.steps is None else self.steps
        by_epochs = math.inf if self.epochs is None else max(1, round(self.epochs * (steps_per_epoch or 0)))
        return int(min(by_steps, by_epochs))


class RunDirectory:
    """Everything that a run writes: job.toml (resolved), metrics.h5, checkpoints/, log.txt; and the lock that keeps a
    second job out.
    """

    def __init__(self, path: Path) -> None:
        self.path = path = path.absolute()  # a part of the job may change the working directory
        self.job = path / "job.toml"
        self.metrics = path / "metrics.h5"
        self.checkpoints = path / "checkpoints"
        self.log = path / "log.txt"
        self._lock = RunLock(path / "lock")

    def take(self, *, fresh: bool, again: bool = False) -> None:
        """Make the folder or find it again, and hold it until the context or the process ends. For rank 0.

        Args:
            fresh: move a folder that is there aside.
            again: this job had it before; a lock that is still held is that of a rank it has lost.

        Raises:
            JobError: another job is in it, it cannot be written, or something in it is not what a run writes.
        """
        try:
            existed = self.path.exists()
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.take(again=again)
            if fresh and existed:
                stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
                self.path.rename(unused(self.path.parent, f"{self.path.name}.before-{stamp}"))
                self._lock.release()
                self.path.mkdir()
                self._lock.take()
            open_to_append(self.log).close()
            for path in (self.metrics, journal_of(self.metrics)):
                if os.path.lexists(path):
                    require_plain(path)
        except NotPlainError as error:
            raise JobError(f"the run directory {self.path} cannot be used: {error}; move it away, or --fresh") from None
        except OSError as error:
            raise JobError(f"cannot write to the run directory {self.path}: {error.strerror}") from None

    def write_job(self, text: str) -> None:
        """Write job.toml.

        Raises:
            JobError: it cannot be written.
        """
        try:
            replace_text(self.job, text)
        except OSError as error:
            raise JobError(f"cannot write {self.job}: {error.strerror}") from None

    def require_ours(self) -> None:
        """Make sure that no other job has taken over the directory.

        Raises:
            JobError: one has.
        """
        self._lock.require_held()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()  # other jobs may come in
