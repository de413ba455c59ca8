"""A job that goes on without lost ranks goes on without a lost host, and SLURM lets it."""

from pathlib import Path

import pytest

from hpcopt.elastic.membership import Membership
from hpcopt.errors import EXIT_REQUEUE
from tests.slurm.batch_job import BatchJob, slurm
from tests.slurm.conftest import devcluster, lose

pytestmark = pytest.mark.slurm

JOB = """
run = {name = "t", steps = 100000, elastic = true, copy_every = 5, rejoin_s = 0, log_every_s = 0.2}
workload = {data = "data/digits", batch = 60, model = {name = "mlp", hidden = [32]}}
solver = {name = "unhurried:UnhurriedConfig", shard_optimizer = true, optimizer = {name = "adamw", lr = 0.003}}
"""


def test_an_elastic_job_goes_on_without_a_lost_host(cluster):
    Path("elastic.toml").write_text(JOB)
    job = BatchJob("--nodes=3", "--no-kill", "slurm/train.sh", "elastic.toml", MAX_RESTARTS="0")
    job.wait(lambda: len(job.steps()) >= 10)
    host = slurm("scontrol", "show", "hostnames", job.field("NodeList")).split()[1]
    lose(host)
    try:
        job.wait(lambda: "down" in slurm("sinfo", "--noheader", f"--nodes={host}", "--format=%T"))
        done = len(job.steps())
        job.wait(lambda: len(job.steps()) > done)
        slurm("scancel", "--batch", "--signal=USR1", job.id)
        job.end()
    finally:
        assert devcluster("up").returncode == 0
    assert job.exit_code == EXIT_REQUEUE, job.log
    membership = Membership.of(Path(f"runs/elastic-{job.id}"))
    assert [ranks for _, ranks in membership.starts] == [3, 2]
