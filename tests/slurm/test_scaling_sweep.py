"""slurm/scaling_sweep.sh: every point of the study trains by itself, on its own number of hosts."""

from pathlib import Path

import h5py
import pytest

from tests.slurm.batch_job import BatchJob, slurm

pytestmark = pytest.mark.slurm


def test_one_result_file_for_every_size_and_seed(cluster):
    study = BatchJob(
        *("--nodes=2", "--array=0-3", "slurm/scaling_sweep.sh", "digits.toml", "--set", "run.steps=20"),
        NODES="1 2",
        SEEDS="7 8",
        BATCH_PER_RANK="32",
    )
    study.wait(lambda: not slurm("squeue", "--noheader", "--jobs", study.id).strip())
    points = {}
    for path in Path(f"runs/sweep-{study.id}").glob("*/metrics.h5"):
        with h5py.File(path) as metrics:
            points[path.parent.name] = (
                len(metrics.attrs["hostnames"]),
                metrics.attrs["seed"],
                metrics["steps/samples"][-1],
            )
            assert len(metrics["steps/loss"]) == 20
    assert points == {
        "nodes1-seed7": (1, 7, 20 * 32),
        "nodes1-seed8": (1, 8, 20 * 32),
        "nodes2-seed7": (2, 7, 20 * 64),
        "nodes2-seed8": (2, 8, 20 * 64),
    }


def test_an_array_of_the_wrong_length_is_told_the_right_one(cluster):
    task = BatchJob("--array=0-1", "slurm/scaling_sweep.sh", "digits.toml")
    task.wait(lambda: not slurm("squeue", "--noheader", "--jobs", task.id).strip())
    logs = [path.read_text() for path in Path("logs").glob(f"sweep-{task.id}_*.out")]
    assert len(logs) == 2
    assert all("3 sizes and 3 seeds: --array=0-8" in log for log in logs)
