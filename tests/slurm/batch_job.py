"""A job in the development cluster's queue, as a test sees it."""

import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from tests.launching import PATIENCE_S

# A solver, unhurried.py in the folder that jobs are submitted from, whose job runs long enough to be told something and
# leaves the processor to others.
UNHURRIED = """
import time
from hpcopt.solvers.data_parallel import DataParallel, DataParallelConfig

class UnhurriedConfig(DataParallelConfig):
    def build(self, task, context):
        return Unhurried(self, task, context)

class Unhurried(DataParallel):
    def step(self, batch):
        time.sleep(0.05)
        return super().step(batch)
"""
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "DEADLINE"}


def slurm(*command: str, **environment: str) -> str:
    """Run a SLURM command that must succeed; give its output."""
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=PATIENCE_S
    )
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


class BatchJob:
    """Submitted with ``sbatch OPTIONS...`` from the current folder; ends with the test."""

    def __init__(self, *options: str, **environment: str) -> None:
        self.id = slurm("sbatch", "--parsable", *options, **environment).split(";")[0].strip()
        self._hastened = 0

    @classmethod
    def existing(cls, job_id: str) -> "BatchJob":
        """The job of this id, submitted by somebody else; an array's task is named as in 7_1."""
        job = cls.__new__(cls)
        job.id, job._hastened = job_id, 0
        return job

    def field(self, name: str) -> str:
        """One of the fields that scontrol shows."""
        return re.search(rf"\b{name}=(\S*)", slurm("scontrol", "show", "job", "--oneliner", self.id))[1]

    @property
    def state(self) -> str:
        """Its own; of an array, that of a task that has not ended, if there is one."""
        states = re.findall(r"\bJobState=(\S*)", slurm("scontrol", "show", "job", "--oneliner", self.id))
        return next((state for state in states if state not in ENDED), states[0])

    @property
    def restarts(self) -> int:
        return int(self.field("Restarts"))

    @property
    def exit_code(self) -> int:
        return int(self.field("ExitCode").split(":")[0])

    @property
    def log(self) -> str:
        """What it has printed up to now."""
        return "".join(path.read_text(errors="replace") for path in Path("logs").glob(f"*-{self.id}.out"))

    def steps(self) -> np.ndarray:
        """Losses of the steps that its metrics.h5 has up to now, shape (steps,)."""
        files = list(Path("runs").glob(f"*-{self.id}/metrics.h5"))
        return losses(files[0]) if files else np.empty(0)

    def wait(self, until: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
        """Wait until something is so; a requeued job is spared most of the two minutes that SLURM lets it rest."""
        deadline = time.monotonic() + timeout_s
        while not until():
            state = self.state
            assert time.monotonic() < deadline, f"job {self.id} is {state} after {timeout_s:.0f} s:\n{self.log}"
            assert state not in ENDED or until(), f"job {self.id} is {state}:\n{self.log}"
            if state == "PENDING" and self.field("Reason") == "BeginTime" and self.restarts > self._hastened:
                self._hastened = self.restarts
                slurm(
                    "scontrol", "update", f"JobId={self.id}", "StartTime=now+3"
                )  # sooner, hosts refuse the old job id
            time.sleep(0.5)

    def end(self) -> "BatchJob":
        """Wait until it has ended for good."""
        self.wait(lambda: self.state in ENDED)
        return self

    def checkpoint(self) -> None:
        """Ask for what a preemption asks for, and wait until the job is back in the queue."""
        self.wait(lambda: self.state == "RUNNING")  # in any other state scancel tries again for minutes
        restarts = self.restarts
        slurm("scancel", "--batch", "--signal=USR1", self.id)
        self.wait(lambda: self.restarts > restarts)


def losses(metrics: Path) -> np.ndarray:
    """Losses of all steps in a metrics.h5, shape (steps,); empty if it is being made."""
    try:
        with h5py.File(metrics) as file:
            return file["steps/loss"][:]
    except (OSError, KeyError):
        return np.empty(0)
