"""Names of any language, in a terminal that knows ASCII only."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hpcopt.errors import JobError
from hpcopt.prepare import prepare

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
JOB = """
[run]
name = "größe"
steps = 2
[workload]
data = "digits"
batch = 64
[workload.model]
name = "mlp"
hidden = [8]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """With a job, its data and its run."""
    folder = tmp_path_factory.mktemp("ascii")
    prepare("digits", folder)
    (folder / "job.toml").write_text(JOB, encoding="utf-8")
    assert hpcopt(folder, "train", "job.toml", "--run-dir", "run").returncode == 0
    return folder


def hpcopt(folder: Path, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "hpcopt.cli" if command == "cli" else f"hpcopt.{command}", *arguments]
    path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, **ASCII, "PYTHONPATH": path}
    return subprocess.run(program, cwd=folder, env=environment, capture_output=True, text=True)


def test_the_log_and_the_resolved_job_keep_them(folder):
    assert "größe" in (folder / "run" / "log.txt").read_text(encoding="utf-8")
    assert 'name = "größe"' in (folder / "run" / "job.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("command", "arguments", "said"),
    [
        ("train", ["job.toml", "--dry-run"], 'name = "gr??e"'),
        ("train", ["job.toml", "--run-dir", "run"], "nothing to do"),
        ("report", ["run"], "gr??e"),
        ("checkpoint", ["ls", "größe"], "gr????e"),  # of an argument each byte is a character
        ("submit", ["job.toml", "--dry-run", "--nodes=1", "--run-dir", "größe"], "#SBATCH"),
        ("train", ["größe.toml"], "cannot read the job file gr????e.toml"),
        ("prepare", ["digits", "--data-dir", "größe"], "gr????e/digits: prepared"),
    ],
)
def test_commands_show_question_marks(folder, command, arguments, said):
    done = hpcopt(folder, command, *arguments)
    assert said in done.stdout + done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_a_message_quotes_neither_escape_codes_nor_what_no_encoding_takes():
    assert str(JobError("größe\n\x1b[31m, gr\udcc3\udcb6\ud800e")) == "größe\n\\x1b[31m, gr???e"
