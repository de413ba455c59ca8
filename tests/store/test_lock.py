"""One process holds a lock; it is free once that has ended, even killed, and a requeued job is not in its own way."""

import errno
import json
import subprocess
import sys

import pytest

from hpcopt.errors import JobError
from hpcopt.store import lock
from hpcopt.store.lock import RunLock

HOLD = """
import sys
from pathlib import Path
from hpcopt.store.lock import RunLock
lock = RunLock(Path(sys.argv[1]))
lock.take()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path, monkeypatch):
    for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "lock"


@pytest.fixture
def hold(path):
    """Start processes that hold the lock; they end with the test."""
    processes = []

    def start():
        process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdin=-1, stdout=-1, text=True)
        processes.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_the_second_is_refused_and_told_who_holds_it(path, hold):
    other = hold()
    with pytest.raises(JobError, match=rf"in use by process {other.pid} on .*--run-dir"):
        RunLock(path).take()


def test_a_killed_owner_is_no_obstacle(path, hold):
    other = hold()
    other.kill()
    other.wait()
    with RunLock(path) as mine:
        mine.take()
        assert json.loads(path.read_text())["pid"] != other.pid


def test_a_requeued_job_takes_over_what_a_file_server_still_holds(path, hold, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    hold()
    with pytest.raises(JobError, match="SLURM job 77"):  # two steps of one job
        RunLock(path).take()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    RunLock(path).take()
    monkeypatch.setenv("SLURM_JOB_ID", "78")
    with pytest.raises(JobError, match="SLURM job 77"):
        RunLock(path).take()


@pytest.mark.parametrize("text", ["", "not json", "[1]", '{"host": "\\u001b[31m"}', "\x00" * 10_000])
def test_whatever_stands_in_it_does_not_matter(path, hold, text):
    other = hold()
    path.write_text(text)
    with pytest.raises(JobError, match="in use by") as refusal:
        RunLock(path).take()
    assert "\x1b" not in str(refusal.value)
    other.kill()
    other.wait()
    RunLock(path).take()


def test_nothing_is_written_through_a_link(path, tmp_path):
    (tmp_path / "mine").write_text("mine")
    path.symlink_to(tmp_path / "mine")
    with pytest.raises(OSError, match="symbolic link"):
        RunLock(path).take()
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_file_system_without_locks_is_used_without(path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(lock.fcntl, "lockf", none)
    RunLock(path).take()
