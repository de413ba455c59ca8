"""The [run] section: how long, how often, where to, and the run directory that it all goes into."""

import math
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from hpcopt.comm.device import DeviceChoice
from hpcopt.comm.world import Backend
from hpcopt.config import Config

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds(text: str | float) -> float:
    """Read a duration: seconds as a number, "90s", "1h30m", or SLURM's "1-02:00:00", "1:30:00", "30:00"."""
    if isinstance(text, int | float):
        return float(text)
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

    def reached(self, scores: dict[str, float]) -> bool:
        """Whether the score is there: at most the value for a loss, at least the value for others."""
        score = scores[self.metric]
        return score <= self.value if "loss" in self.metric else score >= self.value


class RunConfig(Config):
    """How a job runs."""

    name: str = Field(
        "run", pattern=r"^[\w.+-]+$", description="names the run directory, runs/NAME, unless --run-dir does"
    )
    backend: Backend = Field("mpi", description="what carries collectives: mpi4py, or Horovod (dense collectives only)")
    device: DeviceChoice = Field(
        "auto",
        description="what ranks compute on; auto: a GPU where one is visible, that of the local rank if several are",
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
    threads: int | None = Field(None, ge=1, description="torch threads of a rank; by default its share of the cores")
    log_every_s: float = Field(10.0, gt=0, description="seconds between progress lines in the log")
    stall_s: float = Field(
        60.0, gt=0, description="seconds that a collective may wait before the ranks missing from it are named"
    )
    debug: bool = Field(
        False, description="compare what the ranks are about to do before each collective, and their parameters"
    )

    @model_validator(mode="after")
    def _has_a_length(self) -> "RunConfig":
        if self.steps is None and self.epochs is None:
            raise ValueError("give steps or epochs")
        return self

    def total_steps(self, steps_per_epoch: int) -> int:
        """Optimizer steps of the whole run."""
        by_steps = math.inf if self.steps is None else self.steps
        by_epochs = math.inf if self.epochs is None else max(1, round(self.epochs * steps_per_epoch))
        return int(min(by_steps, by_epochs))


class RunDirectory:
    """Everything that a run writes: job.toml (resolved), metrics.h5, checkpoints/, log.txt."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.job = path / "job.toml"
        self.metrics = path / "metrics.h5"
        self.checkpoints = path / "checkpoints"
        self.log = path / "log.txt"
