"""An installed package works in an empty folder, with no checkout beside it."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.conftest import require

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The programs of an environment of its own, with a wheel of this checkout and the dependencies of this Python."""
    require("wheel", find_spec("setuptools") is not None, "setuptools, which builds it, is not installed")
    source, home = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("environment")
    for name in ("hpcopt", "jobs", "slurm"):  # a copy: builds leave traces
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
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
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["LD_LIBRARY_PATH"] = f"{sys.prefix}/lib"  # an MPI from a wheel
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_help_has_a_line_a_command_and_imports_none(installed, tmp_path):
    from hpcopt.cli import COMMANDS

    said = program(str(installed / "hpcopt"), "--help", folder=tmp_path)
    assert [line.split()[0] for line in said.splitlines() if line.startswith("  ")] == list(COMMANDS)
    code = "import sys, hpcopt.cli; hpcopt.cli.usage(); print({'torch', 'numpy', 'h5py', 'mpi4py'} & set(sys.modules))"
    assert program(str(installed / "python"), "-c", code, folder=tmp_path) == "set()\n"
    for command in COMMANDS:
        said = program(str(installed / "hpcopt"), command, "--help", folder=tmp_path)
        assert said.startswith(f"usage: hpcopt {command}")


def test_the_quickstart_trains_in_an_empty_folder_and_is_reported(installed, tmp_path):
    hpcopt = str(installed / "hpcopt")
    assert str(installed.parent) in program(
        str(installed / "python"), "-c", "import hpcopt; print(hpcopt.__file__)", folder=tmp_path
    )
    program(hpcopt, "prepare", "digits", folder=tmp_path)
    program(hpcopt, "train", "--set", "run.epochs=2", folder=tmp_path)
    assert "quickstart" in program(hpcopt, "report", "runs/quickstart", folder=tmp_path)
    assert "whole" in program(hpcopt, "checkpoint", "verify", "runs/quickstart", folder=tmp_path)


def test_a_job_is_submitted_with_the_packages_scripts(installed, tmp_path):
    shutil.copy(ROOT / "jobs/quickstart.toml", tmp_path / "mine.toml")
    script = program(str(installed / "hpcopt"), "submit", "mine.toml", "--dry-run", folder=tmp_path)
    launch = next(line.removeprefix("source ") for line in script.splitlines() if line.startswith("source "))
    assert installed.parent in Path(launch).parents
    assert Path(launch).read_text() == (ROOT / "slurm/launch.sh").read_text()


def test_every_batch_script_is_in_the_wheel_or_runs_a_benchmark(installed):
    (share,) = installed.parent.glob("lib/python*/site-packages/hpcopt/share")
    for script in (ROOT / "slurm").glob("*.sh"):
        assert (share / "slurm" / script.name).exists() != ("benchmarks" in script.read_text()), script
    assert {job.name for job in (share / "jobs").iterdir()} == {job.name for job in (ROOT / "jobs").iterdir()}


def test_the_current_folder_is_importable_as_under_python_m(installed, tmp_path):
    """What a job names by a dotted name is found where the job is started."""
    (tmp_path / "mine.py").write_text("")
    code = (
        "import sys, runpy\nrunpy.run_module = lambda *_, **__: __import__('mine')\n"
        "sys.argv = ['hpcopt', 'train']\nfrom hpcopt.cli import main\nsys.exit(main())\n"
    )
    script = installed / "like_the_console_script"
    script.write_text(code)
    program(str(installed / "python"), str(script), folder=tmp_path)


@pytest.mark.parametrize(("word", "hint"), [("trian", 'did you mean "train"?'), ("x", "there are train, prepare")])
def test_an_unknown_command_is_named(word, hint, capsys, monkeypatch):
    from hpcopt.cli import main

    monkeypatch.setattr(sys, "argv", ["hpcopt", word])
    assert main() == 2
    assert f'no command "{word}"; {hint}' in capsys.readouterr().err
