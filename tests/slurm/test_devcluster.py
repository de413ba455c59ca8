"""The development cluster comes up once, mends what died, and leaves nothing behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launching import PATIENCE_S
from tests.slurm.batch_job import slurm
from tests.slurm.conftest import devcluster

pytestmark = pytest.mark.slurm

STATE = Path("/run/hpcopt-devcluster")


def traces() -> list[str]:
    """Whatever of the cluster is on this machine."""
    found = [str(path) for path in (STATE, Path("/etc/slurm/slurm.conf")) if os.path.lexists(path)]
    found += [path.name for path in Path("/sys/class/net").iterdir() if path.name.startswith("hpcopt")]
    found += [line for line in Path("/etc/hosts").read_text().splitlines() if "hpcopt" in line or "10.77." in line]
    namespaces = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    found += [line for line in namespaces.splitlines() if line.startswith("hpcopt")]
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                arguments = (process / "cmdline").read_text()
            except OSError:
                continue
            if str(STATE) in arguments:
                found.append(arguments.replace("\0", " "))
    return found


def test_up_again_changes_nothing_but_the_rate(cluster):
    pids = {path.name: path.read_text() for path in STATE.glob("*.pid")}
    assert len(pids) == 6
    assert "rate 100Mbit" in devcluster("up", "--rate", "100mbit").stdout
    assert "rate none" in devcluster("up", "--rate", "none").stdout
    assert "rate 1Gbit" in devcluster("up").stdout
    assert {path.name: path.read_text() for path in STATE.glob("*.pid")} == pids


def test_another_size_is_refused_while_it_is_up(cluster):
    refused = devcluster("up", "--hosts", "3")
    assert refused.returncode == 2
    assert "make cluster-down" in refused.stderr


def test_up_mends_a_dead_slurmd_and_a_lost_link(cluster):
    os.kill(int((STATE / "n2.pid").read_text()), signal.SIGKILL)
    subprocess.run(["ip", "link", "delete", "hpcopt-n3"], check=True)
    assert devcluster("status").returncode == 1
    assert devcluster("up").returncode == 0
    assert sorted(slurm("srun", "--nodes=4", "hostname").split()) == ["n1", "n2", "n3", "n4"]


def test_down_leaves_nothing_and_again_is_harmless(cluster, own_cluster):
    """Also with a job running, and half dead: slurmctld killed."""
    if not own_cluster:
        pytest.skip("the cluster was up before these tests: they leave it up")
    Path("sleep.sh").write_text("#!/bin/bash\n#SBATCH --time=5 --output=logs/sleep-%j.out\nsrun sleep 1000\n")
    slurm("sbatch", "--nodes=4", "sleep.sh")
    os.kill(int((STATE / "slurmctld.pid").read_text()), signal.SIGKILL)
    try:
        assert devcluster("down").returncode == 0
        assert traces() == []
        assert devcluster("down").returncode == 0
        assert devcluster("status").returncode == 3
    finally:
        assert devcluster("up").returncode == 0


def test_a_cluster_that_starts_again_counts_from_beyond_the_jobs_before(cluster, own_cluster):
    """Within a minute too: a job of the old id would go on in that one's run directory."""
    if not own_cluster:
        pytest.skip("the cluster was up before these tests: they leave it up")
    Path("true.sh").write_text("#!/bin/bash\n#SBATCH --time=5 --output=logs/true-%j.out\ntrue\n")
    before = [int(slurm("sbatch", "--parsable", "true.sh")) for _ in range(3)]
    assert devcluster("down").returncode == 0
    assert devcluster("up").returncode == 0
    assert int(slurm("sbatch", "--parsable", "true.sh")) > max(before)


def test_refuses_where_programs_are_missing(own_cluster):
    root = Path(__file__).parents[2]
    nothing = {"PATH": "/nonexistent"}
    for action, expected in (("up", 2), ("status", 3), ("down", 0)):
        command = [sys.executable, "-m", "slurm.devcluster", action]
        done = subprocess.run(command, cwd=root, env=nothing, capture_output=True, text=True, timeout=PATIENCE_S)
        assert done.returncode == expected
        assert "make cluster-packages" in done.stdout + done.stderr
