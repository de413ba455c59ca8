"""hpcopt new: what it lays out, and what it refuses. tests/test_installed.py trains it."""

import subprocess
import sys
from pathlib import Path

import pytest

from hpcopt.new import main

ROOT = Path(__file__).parents[1]


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_project_is_network_data_job_scripts_and_test(tmp_path, capsys):
    assert main([str(tmp_path / "mine")]) == 0
    assert "hpcopt train" in capsys.readouterr().out
    assert files(tmp_path / "mine") == {
        "README.md",
        "job.toml",
        "my_package/__init__.py",
        "my_package/data.py",
        "my_package/network.py",
        "tests/test_my_package.py",
        "slurm/launch.sh",
        "slurm/train.sh",
        "slurm/scaling_sweep.sh",
        "slurm/site/example.sh",
        *(f"slurm/containers/{path.name}" for path in (ROOT / "slurm/containers").iterdir()),
    }
    assert (tmp_path / "mine/logs").is_dir()  # SLURM loses the output of a job whose log it cannot open


def test_its_own_test_passes(tmp_path):
    assert main([str(tmp_path)]) == 0  # an empty folder will do
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:mpi-pytest"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_with_the_example_jobs_come_their_scripts(tmp_path):
    assert main([str(tmp_path / "all"), "--examples"]) == 0
    for pattern in ("jobs/*.toml", "slurm/*.sh"):
        assert {path.name for path in ROOT.glob(pattern)} == {path.name for path in (tmp_path / "all").glob(pattern)}
    assert not list((tmp_path / "all").rglob("devcluster*"))


def test_the_example_of_a_network_of_ones_own_comes_with_it(tmp_path):
    """To be changed: the job finds what only the copy has."""
    assert main([str(tmp_path), "--examples"]) == 0
    with (tmp_path / "examples/own_network/network.py").open("a") as file:
        file.write("\n\nclass Changed(Net):\n    pass\n")
    network = "workload.network=examples.own_network.network:Changed"
    plan = [sys.executable, "-m", "hpcopt.train", "jobs/own_network.toml", "--dry-run", "--set", network]
    done = subprocess.run(plan, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "parameters" in done.stdout


def test_nothing_of_somebody_elses_is_overwritten(tmp_path, capsys):
    (tmp_path / "job.toml").write_text("mine")
    assert main([str(tmp_path)]) == 2
    assert f"{tmp_path} is not empty: name a new folder" in capsys.readouterr().err
    assert files(tmp_path) == {"job.toml"}


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_where_no_folder_can_be_it_says_so(tmp_path, capsys, place):
    (tmp_path / "file").write_text("")
    assert main([str(tmp_path / place)]) == 2
    assert "cannot lay out a project in" in capsys.readouterr().err
