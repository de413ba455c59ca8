"""A script of one's own under the batch script: told to leave, it comes back and does what it would have done."""

import h5py
import numpy as np
import pytest

from tests.slurm.batch_job import BatchJob

pytestmark = pytest.mark.slurm

STEPS, LINGERS = 300, 20
SCRIPT = f"""
import os
import sys
import time

import torch

import hpcopt

lingers = "linger" in sys.argv and not int(os.environ.get("SLURM_RESTART_COUNT", 0))
with hpcopt.Session("runs/own", steps={STEPS}, log_every_s=0.2) as session:
    model = torch.nn.Linear(8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    session.keep(model=model, optimizer=optimizer)
    exchange = session.exchange(model)
    for step in session.steps():
        exchange.zero()
        loss = (model(torch.randn(16, 8)) - 1).square().mean()  # each rank's own numbers
        loss.backward()
        exchange.finish()
        optimizer.step()
        session.log(loss=loss)
        if lingers and step > {LINGERS}:
            time.sleep(0.2)  # until it is told to leave
"""


def begun(job: BatchJob) -> list[int]:
    """Steps at which the run was begun or taken up again."""
    with h5py.File(f"runs/own-{job.id}/metrics.h5") as metrics:
        return metrics["starts/step"][:].tolist()


def test_a_session_that_is_told_to_leave_is_requeued_and_ends_with_the_same_bits(cluster):
    (cluster / "own.py").write_text(SCRIPT)
    undisturbed = BatchJob("--nodes=2", "slurm/train.sh", "own.py")
    job = BatchJob("--nodes=2", "slurm/train.sh", "own.py", "linger")
    job.wait(lambda: len(job.steps()) > LINGERS)
    job.checkpoint()
    assert job.end().state == "COMPLETED", job.log
    assert job.restarts == 1
    assert "told to stop by a signal" in job.log
    first, again = begun(job)
    assert first == 0 < LINGERS < again < STEPS
    assert undisturbed.end().state == "COMPLETED", undisturbed.log
    assert begun(undisturbed) == [0]
    assert len(job.steps()) == STEPS
    assert np.array_equal(job.steps(), undisturbed.steps())
