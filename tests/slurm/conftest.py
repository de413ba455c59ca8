"""The development cluster, up for as long as these tests run, and a folder like a checkout to submit from."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm.devcluster import network
from tests.conftest import require
from tests.launching import PATIENCE_S
from tests.slurm.batch_job import UNHURRIED, slurm

ROOT = Path(__file__).parents[2]
CONFIG = "/run/hpcopt-devcluster/slurm.conf"


def queue() -> list[tuple[str, str]]:
    """Id and folder of every job in the queue, whose ever it is."""
    lines = slurm("squeue", "--noheader", "--array", "--format=%A %Z", SLURM_CONF=CONFIG).splitlines()
    return [(job_id, folder) for job_id, folder in (line.split(" ", 1) for line in lines)]


REFUSED: list[str] = []  # why there is no cluster here


def devcluster(action: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the command behind make cluster-up, cluster-down and cluster-status."""
    command = ["python3", "-m", "slurm.devcluster", action, *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for reason in REFUSED[:1]:
        terminalreporter.write_line(f"SLURM IS NOT TESTED HERE: {reason}", red=True, bold=True)


def lose(host: str) -> None:
    """Kill all processes of a host at once: slurmd, slurmstepd and ranks. ``devcluster("up")`` brings it back."""
    for pid in network.processes(network.PREFIX + host):
        os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="session")
def own_cluster() -> Iterator[bool]:
    """Four hosts at 1 Gbit/s; whether these tests brought them up, and so may take them down."""
    found = devcluster("status").returncode == 0
    up = devcluster("up")
    if up.returncode == 2:
        REFUSED.append(up.stderr.strip())
        require("slurm", False, "no development cluster")
    assert up.returncode == 0, up.stderr
    yield not found
    if not found and not queue():  # somebody may have found it useful meanwhile
        devcluster("down")


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory, own_cluster: bool) -> Path:
    """A folder with the scripts, the package, prepared digits and a job of 60 steps; its runs are the tests' own."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("hpcopt", "slurm", "jobs"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "logs").mkdir()
    quickstart = (ROOT / "jobs/quickstart.toml").read_text()
    assert "epochs = 30\n" in quickstart
    (folder / "digits.toml").write_text(quickstart.replace("epochs = 30\n", "steps = 60\n"))
    (folder / "unhurried.py").write_text(UNHURRIED)
    subprocess.run([sys.executable, "-m", "hpcopt.prepare", "digits"], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture
def cluster(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The cluster, ready for jobs of this Python submitted from the current folder; afterwards its queue is empty."""
    monkeypatch.chdir(checkout)
    monkeypatch.setenv("VIRTUAL_ENV", sys.prefix)
    monkeypatch.setenv("SLURM_CONF", CONFIG)
    for name in ("LAUNCHER", "MPI_KIND", "SITE", "RUN_DIR", "MAX_RESTARTS", "CONTAINER", "IMAGE"):
        monkeypatch.delenv(name, raising=False)
    yield checkout
    for job_id in [job_id for job_id, folder in queue() if folder == str(checkout)]:
        subprocess.run(["scancel", "--signal=KILL", "--full", job_id], capture_output=True)
        subprocess.run(["scancel", job_id], capture_output=True)
