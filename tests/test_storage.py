"""Disks that are full, too small or silent, and clocks that jump: what a job says, what it keeps, how it goes on."""

import errno
import itertools
import os
import resource
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import h5py
import numpy as np
import pytest

from hpcopt.store import checkpoint, journal, metrics
from hpcopt.store.checkpoint import Checkpoints
from hpcopt.train import main
from hpcopt.trainer import progress
from tests.launching import PATIENCE_S

STEPS = 12
JOB = """
[run]
name = "t"
steps = 12
checkpoint_every = 3
log_every_s = 0.001
evaluate_every = 4
[workload]
data = "DATA/digits"
batch = 64
[workload.model]
name = "mlp"
hidden = [8]
[solver.optimizer]
name = "sgd"
"""


@pytest.fixture(scope="module")
def folder(digits, tmp_path_factory):
    """A folder with a job and what it does on a disk that is as it should be."""
    folder = tmp_path_factory.mktemp("storage")
    (folder / "job.toml").write_text(JOB.replace("DATA", str(digits)))
    assert main([str(folder / "job.toml"), "--run-dir", str(folder / "undisturbed")]) == 0
    return folder


@pytest.fixture
def start(folder, tmp_path, capsys):
    """Start the job in a run directory of the test's own; give the exit code and all that was said."""

    def started(*settings):
        options = itertools.chain.from_iterable(("--set", setting) for setting in settings)
        code = main([str(folder / "job.toml"), "--run-dir", str(tmp_path / "run"), *options])
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return code, said.out + said.err

    return started


@pytest.fixture
def whole(folder, tmp_path):
    """Check that a run is, in the end, as if nothing had been."""

    def check(last_steps=1):
        ends = []
        for run, times in ((folder / "undisturbed", 1), (tmp_path / "run", last_steps)):
            with h5py.File(run / "metrics.h5") as file:
                columns = [file[f"{name}"][:] for name in ("steps/step", "steps/loss", "evaluations/test_loss")]
                assert (np.diff(file["steps/time_s"][:]) > 0).all()
            state = Checkpoints(run / "checkpoints", 2).read_part(STEPS, "shared")["solver"]["model"]
            ends.append([*columns, *(parameter.numpy() for parameter in state.values())])
            log = (run / "log.txt").read_text()
            assert log.count(f"step={STEPS}/{STEPS} loss") == times
        for ours, theirs in zip(*ends, strict=True):
            np.testing.assert_array_equal(ours, theirs)

    return check


def full_until(monkeypatch, module, name, calls):
    """A function that writes finds no room, so many times."""
    write, count = getattr(module, name), itertools.count()

    def written(*arguments):
        if next(count) < calls:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(*arguments)

    monkeypatch.setattr(module, name, written)


@pytest.mark.parametrize("background", ["true", "false"])
def test_training_goes_on_without_room_for_checkpoints(start, whole, monkeypatch, background):
    full_until(monkeypatch, checkpoint, "write_tree", 3)
    code, said = start("run.storage_failure=go_on", f"run.checkpoint_in_background={background}")
    assert code == 0
    assert said.count("warning: cannot write") >= 2
    assert "needs" in said
    whole()


@pytest.mark.parametrize("calls", [1, 4, 11])
def test_rows_wait_for_room_and_no_checkpoint_comes_before_them(start, whole, monkeypatch, tmp_path, calls):
    full_until(monkeypatch, journal, "_write_journal", calls)
    commit = Checkpoints.commit

    def committed(self, step, parts):
        with h5py.File(tmp_path / "run/metrics.h5") as file:
            assert file["steps/step"][:].tolist()[:step] == [*range(1, step + 1)]
        return commit(self, step, parts)

    monkeypatch.setattr(Checkpoints, "commit", committed)
    code, said = start("run.storage_failure=go_on")
    assert code == 0
    assert said.count("Until then the rows wait in memory") >= 1
    whole()


def test_the_end_insists_and_the_last_good_checkpoint_stays(start, whole, monkeypatch, tmp_path):
    write = checkpoint.write_tree

    def full_later(path, tree, attributes):
        if attributes["step"] > 6:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        return write(path, tree, attributes)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "write_tree", full_later)
        code, said = start("run.storage_failure=go_on")
    assert code == 2
    assert "Your quota is used up" in said
    assert sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir()) == [
        "latest",
        "step_00000003",
        "step_00000006",
    ]
    assert start()[0] == 0
    whole(last_steps=2)


def test_a_limit_on_files_is_named_with_the_bytes_that_it_lacks(start, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        code, said = start("workload.model.hidden=[8192]")  # 4.9 MB with the momentum
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 2
    assert "shared.h5: File too large; it needs 4,9" in said
    assert "`ulimit -f`" in said
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == []


def test_a_log_without_room_loses_no_line(tmp_path, monkeypatch, capsys):
    log = progress.Progress(tmp_path / "log.txt", speaks=True, every_s=1)
    write, room = os.write, 0

    def scarce(descriptor, data):
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = write(descriptor, data[:room])
        room -= written
        return written

    monkeypatch.setattr(progress.os, "write", scarce)
    for line, room in (("a", 0), ("b", 10), ("c", 3), ("d", 1 << 20), ("e", 1 << 20)):  # noqa: B007
        log.say(line)
    log.close()
    assert [line[21:] for line in (tmp_path / "log.txt").read_text().splitlines()] == [*"abcde"]
    assert capsys.readouterr().out.count("No space left on device; it needs") == 1


HANG = """
import os, sys, threading
from hpcopt import train
sync = os.fsync
def hang(descriptor):
    if "step_00000006" in os.readlink(f"/proc/self/fd/{descriptor}"):
        threading.Event().wait()
    sync(descriptor)
os.fsync = hang
train.leave(train.main(sys.argv[1:]))
"""


def test_a_file_system_that_hangs_is_named_and_not_waited_for(folder, tmp_path, start, whole):
    command = [sys.executable, "-c", HANG, str(folder / "job.toml"), "--run-dir", str(tmp_path / "run")]
    settings = ("--set", "run.stall_s=0.2", "--set", "run.storage_wait_s=1")
    environment = {**os.environ, "HPCOPT_EXIT_FILE": str(tmp_path / "exit")}
    done = subprocess.run([*command, *settings], env=environment, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 70
    assert (tmp_path / "exit").read_text() == "70\n"
    assert "the file system has not answered for" in done.stderr
    assert "step_00000006" in done.stderr
    assert start()[0] == 0
    whole()


def test_clocks_that_jump_change_nothing(start, whole, monkeypatch):
    jumps = itertools.cycle([timedelta(0), timedelta(days=400), timedelta(days=-4000)])

    class Jumping(datetime):
        @classmethod
        def now(cls, zone=UTC):
            return datetime.now(zone) + next(jumps)

    for module in (progress, checkpoint, metrics):
        monkeypatch.setattr(module, "datetime", Jumping)
    seconds = itertools.cycle([0.0, 4e9])
    monkeypatch.setattr("time.time", lambda: next(seconds))
    assert start("run.time_budget=600", "run.steps=8", "run.keep_checkpoints=1")[0] == 0
    assert start("run.time_budget=600")[0] == 0
    whole()
