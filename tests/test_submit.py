"""hpcopt.submit: the script that sbatch gets; on the development cluster, what becomes of it."""

import subprocess
import sys
from pathlib import Path

import pytest

from hpcopt import sbatch
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


@pytest.mark.parametrize(("elastic", "lines"), [("true", 1), ("false", 0)])
def test_slurm_is_to_keep_an_elastic_job_without_a_lost_node(checkout, capsys, elastic, lines):
    assert main(["jobs/quickstart.toml", "--set", f"run.elastic={elastic}", "--dry-run"]) == 0
    assert capsys.readouterr().out.count("#SBATCH --no-kill\n") == lines


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["jobs/none.toml"], "cannot read the job file"),
        (["jobs/quickstart.toml", "--set", "run.epoch=3"], 'did you mean "epochs"'),
        (["jobs/quickstart.toml", "--nodes", "0"], "--nodes 0: at least 1"),
        (["jobs/quickstart.toml", "--gpus-per-node", "-1"], "--gpus-per-node -1: at least 0"),
        (["jobs/quickstart.toml", "--nodes", "1000"], "cannot be shared by 1000 ranks"),
        (["jobs/quickstart.toml", "--array", "a-b"], "--array a-b"),
        (["jobs/quickstart.toml", "--array", "9-0"], "--array 9-0"),
        (["jobs/quickstart.toml", "--array", "0-9%0"], "--array 0-9%0"),
        (["jobs/quickstart.toml", "--time", "banana"], "--time banana: write minutes"),
        (["jobs/quickstart.toml", "--time", "1:2:3:4"], "--time 1:2:3:4: write minutes"),
        (["jobs/quickstart.toml", "--time", "2"], "--time 2 is 120 s, and --lead 120 would ask it"),
        (["jobs/quickstart.toml", "--time", "0:30", "--lead", "60"], "--time 0:30 is 30 s"),
        (["jobs/quickstart.toml", "--time", "7-0", "--lead", "70000"], "at most 65535 seconds"),
        (["jobs/quickstart.toml", "--sbatch=account=abc"], "write one option in its long form"),
        (["jobs/quickstart.toml", "--sbatch=--mem=1G\nrm -rf data"], "write one option in its long form"),
        (["jobs/quickstart.toml", "--sbatch=--time=banana"], "a --time of its own"),
        (["jobs/a\nb.toml"], "cannot be a job's name"),
        (["jobs/quickstart.toml", "--array", "0-3", "--run-dir", "runs/x"], "one directory"),
    ],
)
def test_what_would_fail_in_the_queue_fails_here(checkout, capsys, arguments, message):
    assert main([*arguments, "--dry-run"]) == 2
    assert message in capsys.readouterr().err


def sbatch_words(line: str) -> list[str]:
    """An ``#SBATCH`` line as sbatch was seen to take it apart: a backslash escapes also between quotes, but no blank
    outside them; ``#`` begins a comment.
    """
    words, quote, escaped = [""], "", False
    for character in line.removeprefix("#SBATCH "):
        if character.isspace() and not quote:
            words.append("")
        elif escaped:
            words[-1], escaped = words[-1] + character, False
        elif character == "\\":
            escaped = True
        elif character == quote:
            quote = ""
        elif not quote and character in "'\"":
            quote = character
        elif not quote and character == "#":
            break
        else:
            words[-1] += character
    return words


@pytest.mark.parametrize("name", ["two words", "it's", 'a "b"', "100% #1", "dir; rm -rf *", "é ü"])
def test_a_name_of_any_characters_stays_one_word(checkout, capsys, name):
    job = checkout / f"{name}.toml"
    job.write_text((ROOT / "jobs/quickstart.toml").read_text())
    assert main([job.name, f"--sbatch=--comment={name}", "--dry-run"]) == 0
    script = capsys.readouterr().out
    lines = [sbatch_words(line) for line in script.splitlines() if line.startswith("#SBATCH")]
    assert all(len(words) == 1 for words in lines)
    options = [words[0] for words in lines]
    assert f"--job-name={name}" in options
    assert f"--output=logs/{name.replace('%', '%%')}-%j.out" in options
    assert f"--comment={name}" in options
    shell = "run_ranks() { shift; printf '%s\\n' \"$@\"; }; finish() { :; }; SLURM_JOB_ID=7 RANKS=1\n"
    lines = [line for line in script.splitlines() if not line.startswith(("#", "source"))]
    done = subprocess.run(["bash", "-c", shell + "\n".join(lines)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[3:] == [job.name, "--run-dir", f"runs/{name}-7"]


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [
        ("90", 5400),
        ("1:30", 90),
        ("2:00:01", 7201),
        ("2-3", 51 * 3600),
        ("2-3:04", 51 * 3600 + 240),
        ("1-0:0:5", 86405),
        ("0", None),
        ("UNLIMITED", None),
    ],
)
def test_limits_are_read_as_sbatch_reads_them(limit, seconds):
    assert sbatch.seconds(limit) == seconds


def test_a_folder_without_scripts_takes_the_packages(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([str(ROOT / "jobs/quickstart.toml"), "--dry-run"]) == 0
    assert f"\nsource {ROOT}/slurm/launch.sh\n" in capsys.readouterr().out


def test_without_slurm_it_says_so(checkout, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nonexistent")
    assert main(["jobs/quickstart.toml"]) == 2
    assert "sbatch is not here" in capsys.readouterr().err


def test_where_logs_cannot_be_written_it_says_so(checkout, monkeypatch, capsys):
    (checkout / "bin").mkdir()
    (checkout / "bin/sbatch").write_text("#!/bin/sh\n")
    (checkout / "bin/sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", str(checkout / "bin"))
    (checkout / "logs").write_text("a file in the way")
    assert main(["jobs/quickstart.toml"]) == 2
    assert "cannot write logs/quickstart-" in capsys.readouterr().err


def test_help_needs_neither_torch_nor_mpi():
    program = (
        "import sys, hpcopt.submit as s\n"
        "try: s.main(['--help'])\n"
        "finally: print({'torch', 'mpi4py'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert "set()" in done.stdout
