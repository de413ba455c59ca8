"""hpcopt submit JOB.toml --nodes 4: put a training job, or a script with a Session, into SLURM's queue, or print the
batch script.
"""

import argparse
import ast
import shlex
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from hpcopt import sbatch
from hpcopt.any_text import print_any_text
from hpcopt.errors import EXIT_DONE, HpcoptError, JobError
from hpcopt.shipped import shipped
from hpcopt.store.files import unused

LAUNCH = Path("slurm/launch.sh")  # the folder's own goes before the package's
SCRIPT = ".py"
LOGS = Path("logs")  # SLURM does not make it, and loses the output of a job whose log it cannot open

EPILOG = """\
examples:
  hpcopt submit job.toml --nodes 4 --ntasks-per-node 8 --time 1:00:00
  hpcopt submit job.toml --nodes 4 --set solver.optimizer.lr=0.05 --dry-run
  hpcopt submit job.toml --array 0-9 --sbatch=--account=abc123
  hpcopt submit train.py --nodes 4 -- --lr 0.05         a script of your own with an hpcopt.Session, and its options

What the site needs (modules, MPI) stands in slurm/site/<cluster>.sh. The job checkpoints before its time limit, goes
back into the queue and continues in the same run directory.
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="hpcopt submit",
        description="Write a batch script for a training job, have SLURM check it, and submit it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("job", type=Path, help="job file, or a Python script with an hpcopt.Session")
    p.add_argument("--nodes", type=int, default=1, help="number of nodes (default 1)")
    p.add_argument("--ntasks-per-node", type=int, default=1, help="ranks on each node (default 1)")
    p.add_argument("--cpus-per-task", type=int, default=1, help="cores, and so threads, of each rank (default 1)")
    p.add_argument("--gpus-per-node", type=int, default=0, help="GPUs on each node (default none)")
    p.add_argument("--time", default="1:00:00", help="time limit, as sbatch takes it (default 1:00:00)")
    p.add_argument("--array", help="one run for each index, which is its seed: 0-9, 1,3,5, 0-99%%4")
    p.add_argument("--lead", type=int, default=120, help="seconds before the limit to checkpoint at (default 120)")
    p.add_argument("--launcher", choices=["srun", "mpirun"], help="how ranks are started (default: the site's way)")
    p.add_argument(
        "--set", dest="settings", action="append", default=[], metavar="SECTION.KEY=VALUE", help="as of hpcopt train"
    )
    p.add_argument("--run-dir", help="run directory (default: runs/<job>-<job id>)")
    p.add_argument("--sbatch", action="append", default=[], metavar="OPTION", help="another option of sbatch")
    p.add_argument("--dry-run", action="store_true", help="print the script and submit nothing")
    return p


def main(arguments: list[str] | None = None) -> int:
    """Submit, and turn whatever goes wrong into a message and an exit code."""
    print_any_text()
    typed = sys.argv[1:] if arguments is None else arguments
    end = typed.index("--") if "--" in typed else len(typed)
    options = parser().parse_args(typed[:end])
    options.arguments = typed[end + 1 :]  # of a script
    options.elastic = False  # until the job is read
    try:
        check(options)
        script = batch_script(options)
        if options.dry_run:
            print(script, end="")
        else:
            submit(script, options.job.stem, options.array is not None)
    except HpcoptError as error:
        print(f"hpcopt submit: error: {error}", file=sys.stderr)
        return error.exit_code
    return EXIT_DONE


def check(options: argparse.Namespace) -> None:
    """Find what would only fail in the queue.

    Raises:
        JobError: an option, the job file or one of its settings is wrong.
    """
    for name, least in {"nodes": 1, "ntasks_per_node": 1, "cpus_per_task": 1, "gpus_per_node": 0, "lead": 0}.items():
        if getattr(options, name) < least:
            raise JobError(f"--{name.replace('_', '-')} {getattr(options, name)}: at least {least}")
    sbatch.check_name(options.job.stem)
    sbatch.check_limit(options.time, options.lead)
    if options.array is not None:
        sbatch.check_array(options.array)
    if options.array is not None and options.run_dir is not None:
        raise JobError("--run-dir with --array: all indices would train in one directory; leave it out")
    for option in options.sbatch:
        sbatch.check_option(option, header(options))
    if options.job.suffix == SCRIPT:
        check_script(options)
        return
    if options.arguments:
        raise JobError(f"{' '.join(options.arguments)}: only a script has arguments of its own; a job has --set")
    from hpcopt.job import read_job  # imports torch, which --help can do without

    job = read_job(options.job, options.settings)
    job.check_ranks(options.nodes * options.ntasks_per_node)
    options.elastic = job.run.elastic


def check_script(options: argparse.Namespace) -> None:
    """Raise JobError if a script cannot be run, as far as that can be seen without running it."""
    if options.settings:
        raise JobError("--set is for job files; a script's own options stand after --: submit train.py -- --lr 0.05")
    try:
        ast.parse(options.job.read_bytes(), str(options.job))
    except OSError as error:
        raise JobError(f"cannot read the script {options.job}: {error.strerror}") from None
    except (SyntaxError, ValueError) as error:
        raise JobError(f"{options.job} is no Python: {error}") from None


def header(options: argparse.Namespace) -> dict[str, object]:
    """The options of sbatch that these options stand for; None leaves one out."""
    return {
        "job-name": options.job.stem,
        "nodes": options.nodes,
        "ntasks-per-node": options.ntasks_per_node,
        "cpus-per-task": options.cpus_per_task,
        "gpus-per-node": options.gpus_per_node or None,
        "time": options.time,
        "array": options.array,
        "output": LOGS / f"{sbatch.file_name(options.job.stem)}-{'%A_%a' if options.array else '%j'}.out",
        "open-mode": "append",
        "signal": f"B:USR1@{options.lead}",
    }


def batch_script(options: argparse.Namespace) -> str:
    """The script as sbatch takes it."""
    name, array = options.job.stem, options.array is not None
    run_dir = shlex.quote(options.run_dir) if options.run_dir else f"runs/{shlex.quote(name)}-{_job_id(array)}"
    seed = ["--set", "run.seed=$SLURM_ARRAY_TASK_ID"] if array else []
    settings = [word for setting in options.settings for word in ("--set", shlex.quote(setting))]
    command = ["python", "-m", "hpcopt.train", shlex.quote(str(options.job)), "--run-dir", run_dir, *seed, *settings]
    exports = []
    if options.job.suffix == SCRIPT:
        command = ["python", *(shlex.quote(word) for word in (str(options.job), *options.arguments))]
        exports = [f"export HPCOPT_RUN_DIR={run_dir}", *(["export HPCOPT_SEED=$SLURM_ARRAY_TASK_ID"] if array else [])]
    launch = LAUNCH if LAUNCH.exists() else shipped("slurm") / LAUNCH.name
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH {sbatch.word(f'--{key}={value}')}" for key, value in header(options).items() if value is not None),
        "#SBATCH --requeue",
        *(["#SBATCH --no-kill"] if options.elastic else []),  # not for a lost node
        *(f"#SBATCH {sbatch.word(option)}" for option in options.sbatch),
        "set -euo pipefail",
        *([f"LAUNCHER={options.launcher}"] if options.launcher else []),
        f"source {shlex.quote(str(launch))}",
        *exports,
        f'run_ranks "$RANKS" {" ".join(command)}',
        "finish",
    ]
    return "\n".join(lines) + "\n"


def _job_id(array: bool) -> str:
    return "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" if array else "$SLURM_JOB_ID"


def submit(script: str, name: str, array: bool) -> None:
    """Keep the script beside the logs, let SLURM check it, submit it, and say where to look.

    Raises:
        JobError: SLURM is not here or does not take the script, whose words the message has; logs/ cannot be written.
    """
    if shutil.which("sbatch") is None:
        raise JobError("sbatch is not here: submit from a login node, or see the script with --dry-run")
    path = unused(LOGS, f"{name}-{datetime.now(UTC):%Y%m%dT%H%M%S}", ".sh")
    try:
        LOGS.mkdir(exist_ok=True)
        path.write_text(script, encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise JobError(f"cannot write {path}: {error.strerror}") from None
    _sbatch("--test-only", str(path))
    job_id = _sbatch("--parsable", str(path)).split(";")[0].strip()
    print(f"job {job_id}")
    print(f"script {path}")
    print(f"log {LOGS / name}-{job_id}{'_*' if array else ''}.out")


def _sbatch(*arguments: str) -> str:
    done = subprocess.run(["sbatch", *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        raise JobError(f"SLURM does not take this job: {done.stderr.strip()}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
