"""A job that trains an agent, under MPI: it ends, goes on, and is told of in the metrics."""

import numpy as np
import pytest

from hpcopt.errors import EXIT_DONE
from hpcopt.runs import open_run
from hpcopt.train import main

JOB = """
[run]
name = "track"
steps = 40
evaluate_every = 20
checkpoint_every = 10
device = "cpu"

[workload]
name = "control"
environment = "tests.solvers.actor_critic.worlds:Track"
environments = 2
batch = 4
test = 3
actor = { name = "mlp", width = 16 }
critic = { name = "mlp", width = 16 }

[solver]
name = "actor_critic"
warmup = 20
"""


@pytest.mark.parallel([1, 3])
def test_a_job_trains_and_goes_on(shared_tmp_path):
    from mpi4py import MPI

    job, size = shared_tmp_path / "job.toml", MPI.COMM_WORLD.size
    if MPI.COMM_WORLD.rank == 0:
        job.write_text(JOB, encoding="utf-8")
    MPI.COMM_WORLD.barrier()

    def train(run, *settings):
        sets = [word for setting in settings for word in ("--set", setting)]
        return main([str(job), "--run-dir", str(shared_tmp_path / run), *sets])

    assert train("straight") == EXIT_DONE
    assert train("cut", "run.steps=20") == EXIT_DONE
    assert train("cut") == EXIT_DONE
    if MPI.COMM_WORLD.rank == 0:
        straight, cut = (open_run(shared_tmp_path / name) for name in ("straight", "cut"))
        weights, others = straight.weights(), cut.weights()
        assert all(weights[name].equal(others[name]) for name in weights)
        steps, evaluations = cut.metrics(), cut.metrics("evaluations")
        assert steps["env_steps"].tolist() == [4 * step for step in range(1, 41)]
        assert evaluations["evaluation_return"][-1] == straight.metrics("evaluations")["evaluation_return"][-1]
        episodes, every = cut.metrics("episodes"), straight.metrics("episodes")
        assert all(np.array_equal(column, every[name]) for name, column in episodes.items())
        assert steps["episodes"][steps["episodes"] > 0].sum() == len(episodes["return"]) > 15
        assert episodes["length"].sum() + 2 * 7 >= 160 and (episodes["env_steps"] == 4 * episodes["step"]).all()
        last = episodes["step"] == episodes["step"][-1]
        assert episodes["return"][last].mean() == pytest.approx(steps["return"][episodes["step"][-1] - 1])
        assert {"return", "updates", "critic_loss", "actor_loss", "temperature", "replay_age"} <= steps.keys()
        assert ("lag" in steps) == ("learner_idle" in steps) == ("collector_idle" in steps) == (size > 1)
        assert straight.model(weights["policy.head.weight"].new_zeros(1, 2)).shape == (1, 1)
    MPI.COMM_WORLD.barrier()
