"""One process holds a lock; it is free once that has ended, even killed, and a requeued job is not in its own way."""

import errno
import json
import subprocess
import sys
import time

import pytest

from hpcopt.errors import JobError
from hpcopt.store import lock
from hpcopt.store.lock import RunLock

HOLD = """
import sys
from pathlib import Path
from hpcopt.store import lock
from hpcopt.store.lock import RunLock
if sys.argv[2] != "here":
    lock.BOOT_ID = Path(sys.argv[2])
    lock._lock = lambda descriptor: True  # as on a mount without a lock manager: nobody else hears of it
mine = RunLock(Path(sys.argv[1]), 0.2)
mine.take()
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

    def start(boot="here"):
        process = subprocess.Popen([sys.executable, "-c", HOLD, str(path), str(boot)], stdin=-1, stdout=-1, text=True)
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
    with RunLock(path, 0.2) as mine:
        mine.take()
        with pytest.raises(JobError, match="in use by"):
            RunLock(path, 0.2).take()


@pytest.fixture
def boot(tmp_path):
    """What names another machine."""
    (tmp_path / "boot").write_text("another")
    return tmp_path / "boot"


def test_a_beating_heart_on_another_machine_is_heard_without_a_lock(path, hold, boot):
    other = hold(boot)
    with pytest.raises(JobError, match=f"in use by process {other.pid}"):
        RunLock(path, 0.2).take()


def test_a_mark_that_a_crash_left_on_another_machine_falls_silent(path, hold, boot):
    other = hold(boot)
    other.kill()
    other.wait()
    assert json.loads(path.read_text())["boot"] == "another"
    with RunLock(path, 0.2) as mine:
        mine.take()
        mine.require_held()


def test_a_requeued_job_does_not_wait_for_its_own_mark(path, hold, boot, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    hold(boot).kill()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    monkeypatch.setattr(lock.time, "sleep", None)
    with RunLock(path) as mine:
        mine.take()


def test_a_job_takes_over_from_a_rank_that_it_has_lost(path, hold):
    other = hold()
    with RunLock(path) as mine:
        mine.take(again=True)
        assert json.loads(path.read_text())["pid"] != other.pid
        mine.require_held()


def test_an_owner_that_was_cut_off_learns_of_its_successor(path):
    with RunLock(path, 0.2) as mine:
        mine.take()
        mine.require_held()
        successor = json.loads(path.read_text()) | {"token": "other", "host": "elsewhere"}
        path.write_text(json.dumps(successor))
        with pytest.raises(JobError, match=r"on elsewhere, since .* has taken over"):
            mine.require_held()
        time.sleep(0.5)
    assert json.loads(path.read_text()) == successor  # neither its heart nor its end touched it


def test_a_mark_is_gone_at_the_end(path):
    with RunLock(path) as mine:
        mine.take()
        assert path.stat().st_size == lock.MARK_BYTES
    assert path.read_text() == ""
