"""A job that goes on without lost ranks goes on without a lost host, and SLURM lets it."""

from pathlib import Path

import pytest

from hpcopt.elastic.membership import Membership
from tests.slurm.batch_job import BatchJob, slurm
from tests.slurm.conftest import devcluster, lose

pytestmark = pytest.mark.slurm

UNHURRIED = """
import time
from hpcopt.solvers.data_parallel import DataParallel, DataParallelConfig

class UnhurriedConfig(DataParallelConfig):
    def build(self, task, context):
        return Unhurried(self, task, context)

class Unhurried(DataParallel):
    def step(self, batch):
        time.sleep(0.1)
        return super().step(batch)
"""
STEPS = 200  # SLURM takes ten seconds to notice
JOB = """
run = {name = "t", steps = 200, elastic = true, copy_every = 5, rejoin_s = 0, log_every_s = 0.2}
workload = {data = "data/digits", batch = 60, model = {name = "mlp", hidden = [32]}}
solver = {name = "unhurried:UnhurriedConfig", shard_optimizer = true, optimizer = {name = "adamw", lr = 0.003}}
"""


def test_an_elastic_job_goes_on_without_a_lost_host(cluster):
    Path("unhurried.py").write_text(UNHURRIED)
    Path("elastic.toml").write_text(JOB)
    job = BatchJob("--nodes=3", "--no-kill", "slurm/train.sh", "elastic.toml")
    job.wait(lambda: len(job.steps()) >= 10)
    host = slurm("scontrol", "show", "hostnames", job.field("NodeList")).split()[1]
    lose(host)
    try:
        job.wait(lambda: "down" in slurm("sinfo", "--noheader", f"--nodes={host}", "--format=%T"))
        assert job.state == "RUNNING", job.log
        assert job.end().state == "COMPLETED", job.log
    finally:
        assert devcluster("up").returncode == 0
    assert len(job.steps()) == STEPS
    (_, before), (_, after) = Membership.of(Path(f"runs/elastic-{job.id}")).starts
    assert (before, after) == (3, 2)
