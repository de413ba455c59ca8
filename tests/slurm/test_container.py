"""Ranks in containers, the batch script outside: a signal reaches them, and the job leaves, comes back and goes on."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import require
from tests.slurm.batch_job import BatchJob
from tests.slurm.test_preemption import JOB, STEPS, starts

pytestmark = pytest.mark.slurm


@pytest.fixture
def contained(cluster):
    """The environment of a job whose ranks run in containers of Debian's bubblewrap."""
    require("slurm", shutil.which("bwrap") is not None, "bubblewrap is not installed: `make cluster-packages`")
    return {"CONTAINER": "bubblewrap"}


def mount_namespaces(job: BatchJob) -> set[Path]:
    """Those that the ranks of a job run in."""
    pids = subprocess.run(["pgrep", "--full", f"^python .*digits-{job.id}"], capture_output=True, text=True)
    return {Path(f"/proc/{pid}/ns/mnt").readlink() for pid in pids.stdout.split()}


def test_a_job_in_containers_is_requeued_from_outside_and_ends_with_the_same_bits(contained):
    length = ("--set", f"run.steps={STEPS}")
    undisturbed = BatchJob("--nodes=2", "slurm/train.sh", *JOB, *length)
    job = BatchJob("--nodes=2", "slurm/train.sh", *JOB, *length, **contained)
    job.wait(lambda: len(starts(job)) == 1 and len(job.steps()) >= 20)
    inside = mount_namespaces(job)
    assert len(inside) == 2 and Path("/proc/self/ns/mnt").readlink() not in inside
    job.checkpoint()
    assert job.end().state == "COMPLETED", job.log
    assert job.restarts == 1 and "checkpointed; back into the queue" in job.log
    assert undisturbed.end().state == "COMPLETED"
    assert np.array_equal(job.steps(), undisturbed.steps()) and len(job.steps()) == STEPS
    assert len(starts(job)) == 2
