"""python -m hpcopt.submit, to the end of the job."""

from pathlib import Path

import pytest

from hpcopt.submit import main
from tests.slurm.batch_job import BatchJob, losses, slurm

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


def test_a_name_of_any_characters_is_one_job(cluster, capsys):
    name = """it's "1" of 100% #2"""
    Path(f"{name}.toml").write_bytes(Path("digits.toml").read_bytes())
    assert main([f"{name}.toml", f"--sbatch=--comment={name}", "--time", "10", "--set", "run.steps=3"]) == 0
    said = dict(line.split(" ", 1) for line in capsys.readouterr().out.splitlines())
    job = BatchJob.existing(said["job"]).end()
    assert job.state == "COMPLETED"
    assert said["log"] == f"logs/{name}-{job.id}.out"
    assert "3 steps" in Path(said["log"]).read_text()
    assert f"Comment={name}" in slurm("scontrol", "show", "job", job.id)
    assert Path(f"runs/{name}-{job.id}/metrics.h5").exists()


def test_slurms_own_refusal_is_passed_on(cluster, capsys):
    assert main(["digits.toml", "--nodes", "5"]) == 2
    assert "SLURM does not take this job" in capsys.readouterr().err
