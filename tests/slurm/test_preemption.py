"""A job that is stopped and comes back does what it would have done undisturbed."""

import os
import signal
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.slurm.batch_job import BatchJob, losses, slurm
from tests.slurm.conftest import devcluster

pytestmark = pytest.mark.slurm

STEPS = 300
JOB = (
    *("digits.toml", "--set", "solver.name=unhurried:UnhurriedConfig"),
    *("--set", "run.checkpoint_every=20", "--set", "run.log_every_s=0.5"),
)
ENDLESS = (*JOB, "--set", "run.steps=1000000", "--set", "solver.schedule.name=constant")


def starts(job: BatchJob) -> list[int]:
    """Steps at which the run was begun or taken up again; empty if metrics.h5 is being made."""
    try:
        with h5py.File(f"runs/digits-{job.id}/metrics.h5") as metrics:
            return metrics["starts/step"][:].tolist()
    except (OSError, KeyError):
        return []


def test_two_preemptions_change_nothing(cluster):
    """Two jobs of the same kind, one of them checkpointed and requeued twice: the same losses to the last bit."""
    length = ("--set", f"run.steps={STEPS}")
    undisturbed = BatchJob("--nodes=2", "slurm/train.sh", *JOB, *length)
    job = BatchJob("--nodes=2", "slurm/train.sh", *JOB, *length)
    for start in (1, 2):
        job.wait(lambda start=start: len(starts(job)) == start and len(job.steps()) >= starts(job)[-1] + 20)
        job.checkpoint()
    assert job.end().state == "COMPLETED", job.log
    assert job.restarts == 2
    assert undisturbed.end().state == "COMPLETED"
    assert len(job.steps()) == STEPS
    assert np.array_equal(job.steps(), undisturbed.steps())
    begun = starts(job)
    assert len(begun) == 3
    assert begun[0] == 0 < begun[1] < begun[2]
    assert starts(undisturbed) == [0]


def test_a_time_limit_that_is_too_short_and_then_a_cancellation(cluster):
    """The limit brings the job back; scancel checkpoints it too, but it stays cancelled."""
    job = BatchJob("--nodes=2", "--time=1", "--signal=B:USR1@20", "slurm/train.sh", *ENDLESS)
    job.wait(lambda: job.restarts == 1)
    job.wait(lambda: job.state == "RUNNING" and len(starts(job)) == 2)
    slurm("scancel", job.id)
    assert job.end().state == "CANCELLED"
    assert "told to stop by a signal" in job.log
    assert "not put back into the queue" in job.log
    assert np.isfinite(job.steps()).all()


def test_restarts_are_capped(cluster):
    job = BatchJob("--nodes=1", "slurm/train.sh", *ENDLESS, MAX_RESTARTS="0")
    job.wait(lambda: len(job.steps()) > 0)
    slurm("scancel", "--batch", "--signal=USR1", job.id)
    assert job.end().state == "FAILED"
    assert job.exit_code == 85
    assert "submit again with the same run directory" in job.log


def test_a_lost_host_costs_no_more_than_the_steps_since_the_last_checkpoint(cluster):
    """slurmd of one host dies: SLURM puts the job back into the queue, and it goes on, on the hosts that remain."""
    job = BatchJob("--nodes=2", "slurm/train.sh", *ENDLESS)
    job.wait(lambda: len(job.steps()) >= 40)
    hosts = slurm("scontrol", "show", "hostnames", job.field("NodeList")).split()
    done = len(job.steps())
    os.kill(int(Path(f"/run/hpcopt-devcluster/{hosts[1]}.pid").read_text()), signal.SIGKILL)
    try:
        job.wait(lambda: job.restarts == 1)
        job.wait(lambda: job.state == "RUNNING" and len(starts(job)) == 2)
        assert hosts[1] not in slurm("scontrol", "show", "hostnames", job.field("NodeList")).split()
    finally:
        assert devcluster("up").returncode == 0
    resumed = starts(job)[1]
    assert resumed > done - 20
    job.wait(lambda: len(job.steps()) > resumed)
    assert np.isfinite(job.steps()).all()


def test_one_task_of_an_array_is_requeued_alone(cluster):
    array = BatchJob(
        "--nodes=1", "--time=10", "--array=0-1", "slurm/scaling_sweep.sh", *ENDLESS, NODES="1", SEEDS="1 2"
    )
    first, last = (
        BatchJob.existing(f"{array.id}_{task}") for task in (0, 1)
    )  # SLURM gives the last the array's own id
    last.wait(lambda: len(losses(Path(f"runs/sweep-{array.id}/nodes1-seed2/metrics.h5"))) > 0)
    last.checkpoint()
    assert (first.restarts, last.restarts) == (0, 1)
