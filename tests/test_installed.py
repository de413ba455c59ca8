"""An installed package works in an empty folder, with no checkout beside it."""

import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import venv
from importlib.util import find_spec
from pathlib import Path

import h5py
import pytest

from tests.conftest import require

ROOT = Path(__file__).parents[1]
MPIRUN = shutil.which(Path(sys.executable).with_name("mpirun")) or "mpirun"


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The programs of an environment of its own, with a wheel of this checkout and the dependencies of this Python."""
    require("wheel", find_spec("setuptools") is not None, "setuptools, which builds it, is not installed")
    source, home = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("environment")
    for name in ("hpcopt", "jobs", "slurm", "examples"):  # a copy: builds leave traces
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    program(*pip, "wheel", "--quiet", "--no-build-isolation", "--no-deps", "--wheel-dir", str(home), str(source))
    venv.create(home, with_pip=False)
    python = home / "bin/python"
    (wheel,) = home.glob("*.whl")
    program(*pip, "--python", str(python), "install", "--quiet", "--no-index", "--no-deps", str(wheel))
    (site_packages,) = home.glob("lib/python*/site-packages")
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return home / "bin"


def program(*command: str, folder: Path | None = None) -> str:
    """Run a program as in a shell that knows no checkout; give what it printed."""
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def environment() -> dict[str, str]:
    """This one, without the checkout, and with the libraries of an MPI from a wheel."""
    found = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {**found, "LD_LIBRARY_PATH": f"{sys.prefix}/lib"}


HELP = """
import sys
from contextlib import suppress
from hpcopt.cli import COMMANDS, main

for command in COMMANDS:
    sys.argv = ["hpcopt", command, "--help"]
    with suppress(SystemExit):
        main()
"""


def test_help_has_a_line_a_command_and_imports_none(installed, tmp_path):
    from hpcopt.cli import COMMANDS

    said = program(str(installed / "hpcopt"), "--help", folder=tmp_path)
    assert [line.split()[0] for line in said.splitlines() if line.startswith("  ")] == list(COMMANDS)
    code = "import sys, hpcopt.cli; hpcopt.cli.usage(); print({'torch', 'numpy', 'h5py', 'mpi4py'} & set(sys.modules))"
    assert program(str(installed / "python"), "-c", code, folder=tmp_path) == "set()\n"
    said = program(str(installed / "python"), "-c", HELP, folder=tmp_path)
    assert re.findall(r"^usage: hpcopt (\S+)", said, re.M) == list(COMMANDS)


def test_the_quickstart_trains_in_an_empty_folder_and_is_reported(installed, tmp_path):
    hpcopt = str(installed / "hpcopt")
    assert str(installed.parent) in program(
        str(installed / "python"), "-c", "import hpcopt; print(hpcopt.__file__)", folder=tmp_path
    )
    program(hpcopt, "prepare", "digits", folder=tmp_path)
    program(hpcopt, "train", "--set", "run.epochs=2", folder=tmp_path)
    assert "quickstart" in program(hpcopt, "report", "runs/quickstart", folder=tmp_path)
    program(hpcopt, "report", "runs/quickstart", "--html", "page.html", folder=tmp_path)
    assert "</html>" in (tmp_path / "page.html").read_text()
    assert "whole" in program(hpcopt, "checkpoint", "verify", "runs/quickstart", folder=tmp_path)


def test_a_job_is_submitted_with_the_packages_scripts(installed, tmp_path):
    shutil.copy(ROOT / "jobs/quickstart.toml", tmp_path / "mine.toml")
    script = program(str(installed / "hpcopt"), "submit", "mine.toml", "--dry-run", folder=tmp_path)
    launch = next(line.removeprefix("source ") for line in script.splitlines() if line.startswith("source "))
    assert installed.parent in Path(launch).parents
    assert Path(launch).read_text() == (ROOT / "slurm/launch.sh").read_text()


def test_the_example_jobs_come_out_of_the_wheel(installed, tmp_path):
    program(str(installed / "hpcopt"), "new", "all", "--examples", folder=tmp_path)
    for pattern in ("jobs/*.toml", "slurm/*.sh"):
        assert {path.name for path in ROOT.glob(pattern)} == {path.name for path in (tmp_path / "all").glob(pattern)}


def test_a_project_of_ones_own_trains_at_once_on_one_rank_and_on_two(installed, tmp_path):
    """Its network and data set are found in the current folder, under the program as under ``python -m``."""
    hpcopt, folder = str(installed / "hpcopt"), tmp_path / "mine"
    program(hpcopt, "new", "mine", folder=tmp_path)
    program(hpcopt, "train", folder=folder)
    program(MPIRUN, "-n", "2", hpcopt, "train", "--run-dir", "runs/two", folder=folder)
    program(str(installed / "python"), "-m", "hpcopt.train", "--dry-run", folder=folder)
    said = program(hpcopt, "report", "runs/mine", "runs/two", folder=folder)
    assert "mine" in said
    assert "two" in said
    losses, accuracies = [], []
    for run in ("mine", "two"):
        with h5py.File(folder / "runs" / run / "metrics.h5") as file:
            losses.append(file["steps/loss"][:])
            accuracies.append(file["evaluations/test_accuracy"][-1])
    assert losses[1][:100] == pytest.approx(losses[0][:100], rel=1e-3)
    assert min(accuracies) > 0.9


OWN_JOB = """
[run]
name = "own"
steps = 300
checkpoint_every = 20
[workload]
name = "torch"
network = "network:Net"
train = "data:Digits"
train_arguments = { train = true, moved = true }
test = "data:Digits"
test_arguments = { train = false }
loss = "cross_entropy"
scores = ["accuracy"]
batch = 64
[solver]
name = "my_solver:NormalisedConfig"
length = 0.02
[exchange]
name = "two_phase"
codec = { name = "my_codec:EightBits" }
"""


def test_a_network_data_solver_and_codec_of_ones_own_train_on_two_ranks_and_go_on_after_a_kill(installed, tmp_path):
    for file in (*(ROOT / "tests/outsider").glob("my_*.py"), *(ROOT / "examples/own_network").glob("*.py")):
        shutil.copy(file, tmp_path)
    (tmp_path / "my.toml").write_text(OWN_JOB)
    hpcopt = str(installed / "hpcopt")
    train = [MPIRUN, "-n", "2", hpcopt, "train", "my.toml"]
    with subprocess.Popen(train, cwd=tmp_path, env=environment(), start_new_session=True) as job:
        while job.poll() is None and not (tmp_path / "runs/own/checkpoints/latest").exists():
            time.sleep(0.01)
        os.killpg(job.pid, signal.SIGKILL)
    assert "resumed at step" in program(*train, folder=tmp_path)
    assert "own" in program(hpcopt, "report", "runs/own", folder=tmp_path)
    log = (tmp_path / "runs/own/log.txt").read_text()
    assert all(f"plugged in: {name}" in log for name in ("network:Net", "data:Digits", "my_solver:", "my_codec:"))


@pytest.mark.parametrize(("word", "hint"), [("trian", 'did you mean "train"?'), ("x", "there are new, train")])
def test_an_unknown_command_is_named(word, hint, capsys, monkeypatch):
    from hpcopt.cli import main

    monkeypatch.setattr(sys, "argv", ["hpcopt", word])
    assert main() == 2
    assert f'no command "{word}"; {hint}' in capsys.readouterr().err
