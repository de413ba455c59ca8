"""hpcopt.submit: the script that sbatch gets; on the development cluster, what becomes of it."""

import subprocess
import sys
from pathlib import Path

import pytest

from hpcopt.submit import main

ROOT = Path(__file__).parents[1]


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    for name in ("slurm", "jobs"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_dry_run_prints_a_script_that_bash_can_read(checkout, capsys):
    arguments = [
        "jobs/quickstart.toml",
        "--nodes",
        "4",
        "--ntasks-per-node",
        "8",
        "--time",
        "1:30:00",
        "--launcher",
        "mpirun",
    ]
    assert main([*arguments, "--set", "run.name=it", "--sbatch=--account=abc", "--dry-run"]) == 0
    script = capsys.readouterr().out
    for option in ("nodes=4", "ntasks-per-node=8", "time=1:30:00", "account=abc", "signal=B:USR1@120", "requeue"):
        assert f"\n#SBATCH --{option}\n" in script
    assert "\nLAUNCHER=mpirun\n" in script
    assert (
        "python -m hpcopt.train jobs/quickstart.toml --run-dir runs/quickstart-$SLURM_JOB_ID --set run.name=it"
        in script
    )
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0


def test_an_array_trains_with_its_index_as_the_seed_each_in_its_own_folder(checkout, capsys):
    assert main(["jobs/quickstart.toml", "--array", "0-9%2", "--dry-run"]) == 0
    script = capsys.readouterr().out
    assert "#SBATCH --array=0-9%2\n" in script
    assert "#SBATCH --output=logs/quickstart-%A_%a.out\n" in script
    assert (
        "--run-dir runs/quickstart-${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID --set run.seed=$SLURM_ARRAY_TASK_ID"
        in script
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["jobs/none.toml"], "cannot read the job file"),
        (["jobs/quickstart.toml", "--set", "run.epoch=3"], 'did you mean "epochs"'),
        (["jobs/quickstart.toml", "--nodes", "0"], "--nodes 0: at least 1"),
        (["jobs/quickstart.toml", "--gpus-per-node", "-1"], "--gpus-per-node -1: at least 0"),
        (["jobs/quickstart.toml", "--nodes", "1000"], "cannot be shared by 1000 ranks"),
        (["jobs/quickstart.toml", "--array", "a-b"], "--array a-b"),
        (["jobs/quickstart.toml", "--array", "0-3", "--run-dir", "runs/x"], "one directory"),
    ],
)
def test_what_would_fail_in_the_queue_fails_here(checkout, capsys, arguments, message):
    assert main([*arguments, "--dry-run"]) == 2
    assert message in capsys.readouterr().err


def test_elsewhere_than_in_a_checkout_it_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([str(ROOT / "jobs/quickstart.toml"), "--dry-run"]) == 2
    assert "submit from the top of the checkout" in capsys.readouterr().err


def test_without_slurm_it_says_so(checkout, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nonexistent")
    assert main(["jobs/quickstart.toml"]) == 2
    assert "sbatch is not here" in capsys.readouterr().err


def test_help_needs_neither_torch_nor_mpi():
    program = (
        "import sys, hpcopt.submit as s\n"
        "try: s.main(['--help'])\n"
        "finally: print({'torch', 'mpi4py'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert "set()" in done.stdout
