"""What else a run directory may hold when a job starts in it: another job, damage, links, pipes, lost files."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from hpcopt.store import metrics
from hpcopt.store.checkpoint import Checkpoints
from hpcopt.store.journal import journal_of
from hpcopt.store.lock import RunLock
from hpcopt.train import main
from tests.launching import PATIENCE_S

JOB = """
[run]
name = "t"
steps = 6
checkpoint_every = 3
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
def done(digits, tmp_path_factory) -> Path:
    """A folder with a job and its run, of 6 steps and checkpoints at 3 and 6."""
    folder = tmp_path_factory.mktemp("done")
    (folder / "job.toml").write_text(JOB.replace("DATA", str(digits)))
    assert main([str(folder / "job.toml"), "--run-dir", str(folder / "run")]) == 0
    return folder


@pytest.fixture
def run(done, tmp_path) -> Path:
    return shutil.copytree(done / "run", tmp_path / "run")


@pytest.fixture
def start(done, run, capsys):
    """Start the job in the run directory; give the exit code and what was said, of which no line is a traceback."""

    def started(*arguments: str) -> tuple[int, str]:
        code = main([str(done / "job.toml"), "--run-dir", str(run), "--set", "run.steps=8", *arguments])
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        assert len(said.err.splitlines()) == (code == 2)
        return code, said.err if code else said.out

    return started


def steps(run: Path) -> list[int]:
    with h5py.File(run / "metrics.h5") as file:
        return file["steps/step"][:].tolist()


@pytest.mark.parametrize("fresh", [(), ("--fresh",)])
def test_the_second_job_is_refused_and_the_first_goes_on(run, start, done, fresh):
    hold = (
        "import sys, hpcopt.train as t, hpcopt.trainer.loop as l\n"
        "train = l.Trainer.train\n"
        "def waiting(self):\n"
        "    print('holds', flush=True)\n"
        "    sys.stdin.readline()\n"
        "    return train(self)\n"
        "l.Trainer.train = waiting\n"
        "sys.exit(t.main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", hold, str(done / "job.toml"), "--run-dir", str(run), "--set", "run.steps=9"]
    first = subprocess.Popen(command, stdin=-1, stdout=-1, text=True)
    try:
        while first.stdout.readline() != "holds\n":
            assert first.poll() is None
        code, error = start(*fresh)
        assert code == 2
        assert f"in use by process {first.pid} on" in error
        first.communicate("\n", timeout=PATIENCE_S)
    finally:
        first.kill()
    assert first.returncode == 0
    assert steps(run) == [*range(1, 10)]
    assert not list(run.parent.glob("run.before-*"))


def test_a_job_lets_go_of_its_directory(run, start):
    assert start()[0] == 0
    check = (
        "import sys; from pathlib import Path; from hpcopt.store.lock import RunLock; RunLock(Path(sys.argv[1])).take()"
    )
    subprocess.run([sys.executable, "-c", check, str(run / "lock")], check=True)
    assert isinstance(RunLock(run / "lock"), RunLock)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def text(path: Path) -> None:
    path.write_text("hello")


def schema_99(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs["schema_version"] = 99


def schema_of_another_kind(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs["schema_version"] = ["a", "b"]


def no_schema(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file.attrs["schema_version"]


def no_steps(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["steps"]


def fixed_column(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["steps/loss"]
        file["steps/loss"] = np.zeros(6)


def steps_of_text(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["evaluations/step"]
        file["evaluations"].create_dataset("step", data=np.array([b"x"]), maxshape=(None,), chunks=(1,))


DAMAGE = [cut, loop, pipe, device, folder, text]
FOREIGN = [schema_99, schema_of_another_kind, no_schema, no_steps, fixed_column, steps_of_text]


@pytest.mark.parametrize("damage", [*DAMAGE, *FOREIGN], ids=lambda f: f.__name__)
def test_metrics_that_cannot_be_gone_on_with_are_one_message(run, start, damage):
    damage(run / "metrics.h5")
    status = os.lstat(run / "metrics.h5")
    code, error = start()
    assert code == 2
    assert "metrics.h5" in error
    assert "move it away" in error
    after = os.lstat(run / "metrics.h5")
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (status.st_ino, status.st_size, status.st_mtime_ns)
    (run / "metrics.h5").rename(run / "away")  # as it says
    code, said = start()
    assert code == 0
    assert "resumed at step 6" in said
    assert steps(run) == [7, 8]


@pytest.mark.parametrize("damage", DAMAGE[1:], ids=lambda f: f.__name__)
def test_a_journal_that_is_none_does_no_harm(run, start, damage):
    journal = journal_of(run / "metrics.h5")
    journal.touch()
    damage(journal)
    code, _ = start()
    assert code == (0 if damage is text else 2)
    assert code or steps(run) == [*range(1, 9)]


def test_lost_metrics_begin_where_the_checkpoint_is(run, start):
    (run / "metrics.h5").unlink()
    assert start()[0] == 0
    assert steps(run) == [7, 8]
    with h5py.File(run / "metrics.h5") as file:
        assert file["starts/step"][:].tolist() == [6]
        assert b"without the metrics" in file["starts/reason"][0]
        assert 0 < file["starts/time_s"][0] < file["steps/time_s"][0]


@pytest.mark.parametrize("name", ["job.toml", "log.txt", ".job.toml.tmp", "lock", "metrics.h5", "metrics.h5.journal"])
def test_nothing_is_written_through_a_link(run, start, name, tmp_path):
    mine = tmp_path / "mine"
    mine.write_text("mine")
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(mine)
    code, _ = start()
    assert code == (0 if "job" in name and "journal" not in name else 2)
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("name", ["job.toml", "log.txt", "lock"])
def test_pipes_are_not_waited_for(run, start, name):
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)
    assert start()[0] == (0 if name == "job.toml" else 2)


def test_a_full_disk_ends_the_job_with_one_message_and_loses_nothing(run, start, monkeypatch):
    def full(journal, view):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(metrics.journal, "_write_journal", full)
        code, error = start()
    assert code == 2
    assert "metrics.h5: No space left on device. Make room, and start the same command again" in error
    assert start()[0] == 0
    assert steps(run) == [*range(1, 9)]


def test_a_full_disk_under_a_checkpoint_keeps_the_one_before(run, start, monkeypatch):
    def full(path, tree, attributes):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("hpcopt.store.checkpoint.write_tree", full)
        code, error = start()
    assert code == 2
    assert "No space left on device" in error
    assert Checkpoints(run / "checkpoints", 2).steps() == [6, 3]
    assert start()[0] == 0
    assert steps(run) == [*range(1, 9)]
