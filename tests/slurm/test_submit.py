"""python -m hpcopt.submit, to the end of the job."""

import pytest

from hpcopt.submit import main
from tests.slurm.batch_job import BatchJob, losses

pytestmark = pytest.mark.slurm


def test_a_submitted_job_trains(cluster, capsys):
    assert main(["digits.toml", "--nodes", "2", "--time", "10"]) == 0
    said = dict(line.split(" ", 1) for line in capsys.readouterr().out.splitlines())
    job = BatchJob.existing(said["job"]).end()
    assert job.state == "COMPLETED"
    assert said["log"] == f"logs/digits-{job.id}.out"
    assert (cluster / said["log"]).read_text() == job.log
    assert (cluster / said["script"]).exists()
    assert len(losses(cluster / f"runs/digits-{job.id}/metrics.h5")) == 60


def test_slurms_own_refusal_is_passed_on(cluster, capsys):
    assert main(["digits.toml", "--nodes", "5"]) == 2
    assert "SLURM does not take this job" in capsys.readouterr().err
